// Runs once inside the gr.HTML component. All bits of all steps come once, packed; a step or a layer is chosen here, without a request.
const STOPS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
const MOST = 16, SCALE = 8, TINT = 0.72, DIM = 'rgba(12,14,20,0.86)', ACCENT = '#ff8a1f';
let data = null, bits = null, picture = null, tokenOf = null, step = 0, which = 1, layer = -1, head = -1, hovered = -1, timer = null;

const $ = (selector) => element.querySelector(selector);
const all = (selector) => [...element.querySelectorAll(selector)];

async function unpack(text) {
  const raw = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return new Uint8Array(await new Response(new Blob([raw]).stream().pipeThrough(new DecompressionStream('deflate'))).arrayBuffer());
}

// Bits of the j-th visual token of the prompt, [step][K, V][layer][head][token] in eighths, averaged over what is not chosen.
function bitsOf(j) {
  const layers = layer < 0 ? data.layers : 1, heads = head < 0 ? data.heads : 1;
  let sum = 0;
  for (let l = 0; l < layers; l++) for (let h = 0; h < heads; h++) {
    const row = ((step * 2 + which) * data.layers + (layer < 0 ? l : layer)) * data.heads + (head < 0 ? h : head);
    sum += bits[row * data.patch.length + j];
  }
  return sum / (layers * heads * SCALE);
}

function color(value) {
  const x = Math.min(Math.max(value / MOST, 0), 1) * (STOPS.length - 1), i = Math.min(Math.floor(x), STOPS.length - 2), f = x - i;
  return STOPS[i].map((a, c) => Math.round(a + (STOPS[i + 1][c] - a) * f)).join(',');
}

function rectOf(i, w, h) {
  const row = Math.floor(i / data.cols), col = i % data.cols;
  const x = Math.round(col * w / data.cols), y = Math.round(row * h / data.rows);
  return [x, y, Math.round((col + 1) * w / data.cols) - x, Math.round((row + 1) * h / data.rows) - y];
}

const isWhole = (j) => data.place[j] >= data.planed[step];

function draw() {
  const canvas = $('.tb-canvas');
  if (!bits || !picture || !picture.complete || !canvas || !canvas.clientWidth) return;
  const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = width * data.rows / data.cols;
  canvas.style.height = height + 'px';
  canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
  const ctx = canvas.getContext('2d');
  ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
  ctx.drawImage(picture, 0, 0, width, height);
  // Without its own colours the picture cannot be mistaken for the tint.
  ctx.globalCompositeOperation = 'saturation'; ctx.fillStyle = '#808080'; ctx.fillRect(0, 0, width, height);
  ctx.globalCompositeOperation = 'source-over';
  let sum = 0, unread = 0, whole = 0;
  for (let i = 0; i < data.rows * data.cols; i++) {
    const [x, y, w, h] = rectOf(i, width, height), j = tokenOf[i];
    if (j < 0) { ctx.fillStyle = DIM; ctx.fillRect(x, y, w, h); continue; }
    const value = bitsOf(j);
    sum += value; unread += value === 0;
    ctx.fillStyle = `rgba(${color(value)},${TINT})`; ctx.fillRect(x, y, w, h);
    if (isWhole(j)) {
      whole++; ctx.lineWidth = 1; ctx.strokeStyle = '#fff'; ctx.strokeRect(x + 1.5, y + 1.5, w - 3, h - 3);
    }
  }
  if (hovered >= 0) tip(ctx, width, height);
  tell(sum / data.patch.length, unread, whole);
}

function tell(mean, unread, whole) {
  const part = layer < 0 && head < 0 ? 'averaged over all layers and KV heads'
    : [layer < 0 ? 'all layers' : `layer ${layer + 1}`, head < 0 ? 'all KV heads' : `KV head ${head + 1}`].join(', ');
  const name = 'KV'[which], what = data.words[data.first + step].trim() || ' ';
  $('.tb-count').textContent = `step ${step + 1} of ${data.steps}`;
  const notes = [`To write \u201c${what}\u201d, ${name} of the patches was read with ${mean.toFixed(1)} bits per number (${part}).`];
  if (unread) notes.push(`${unread} of ${data.patch.length} patches were not read at all.`);
  if (whole) notes.push(`Outlined in white: ${whole} ${whole > 1 ? 'patches' : 'patch'} among the newest tokens, kept whole.`);
  if (data.patch.length < data.rows * data.cols) notes.push('Black: pruned before the language model.');
  if (which === 0 && data.channels) notes.push('The paper chooses K\'s width per channel, so all patches look alike.');
  $('.tb-note').textContent = notes.join(' ');
  element.dataset.step = step; element.dataset.mean = mean.toFixed(3);
  $('.tb-canvas').setAttribute('aria-label', notes.join(' '));
  all('.tb-answer span').forEach((span, i) => {
    span.className = i === data.first + step ? 'tb-now' : i > data.first + step ? 'tb-later' : '';
  });
}

function tip(ctx, width, height) {
  const [x, y, w, h] = rectOf(hovered, width, height), j = tokenOf[hovered], box = $('.tb-tip');
  ctx.lineWidth = 3; ctx.strokeStyle = ACCENT; ctx.strokeRect(x + 1, y + 1, w - 2, h - 2);
  const where = `row ${Math.floor(hovered / data.cols) + 1}, column ${hovered % data.cols + 1}: `;
  box.textContent = where + (j < 0 ? 'pruned' : isWhole(j) ? `kept whole, ${bitsOf(j).toFixed(0)} bits`
    : `${'KV'[which]} read with ${bitsOf(j).toFixed(1)} bits`);
  box.style.display = 'block';
  box.style.left = Math.max(0, Math.min(x + w + 8, width - box.offsetWidth)) + 'px';
  box.style.top = Math.max(0, y + h + 8 + box.offsetHeight > height ? y - box.offsetHeight - 8 : y + h + 8) + 'px';
}

function hover(i) {
  if (i === hovered) return;
  hovered = i;
  if (i < 0 && $('.tb-tip')) $('.tb-tip').style.display = 'none';
  draw();
}

function at(event) {
  const box = $('.tb-canvas').getBoundingClientRect();
  const col = Math.floor((event.clientX - box.left) / box.width * data.cols);
  const row = Math.floor((event.clientY - box.top) / box.height * data.rows);
  return row < 0 || col < 0 || row >= data.rows || col >= data.cols ? -1 : row * data.cols + col;
}

function go(to) {
  step = Math.min(Math.max(to, 0), data.steps - 1);
  $('.tb-step').value = step + 1;
  draw();
}

function pause() {
  clearInterval(timer); timer = null;
  if ($('.tb-play')) { $('.tb-play').textContent = '\u25B6'; $('.tb-play').setAttribute('aria-label', 'Play the steps'); }
}

function options(select, count, every) {
  const names = [every, ...Array.from({ length: count }, (_, i) => String(i + 1))];
  select.replaceChildren(...names.map((name, i) => new Option(name, i - 1)));
}

async function load() {
  const value = props.value;
  if (!value || !value.bits) { pause(); data = bits = null; $('.tb-body').hidden = true; return; }
  if (data && value.id === data.id) { draw(); return; }
  pause();
  const unpacked = await unpack(value.bits);
  // Not by identity: Gradio puts a copy of the same value in its place when any other property changes.
  if (props.value?.id !== value.id) return;
  data = value; bits = unpacked; step = 0; layer = head = hovered = -1;
  tokenOf = new Int32Array(data.rows * data.cols).fill(-1);
  data.patch.forEach((i, j) => { tokenOf[i] = j; });
  $('.tb-body').hidden = false;
  options($('.tb-layer'), data.layers, 'mean of all');
  options($('.tb-head'), data.heads, 'mean of all');
  $('.tb-step').max = data.steps;
  $('.tb-answer').replaceChildren(...data.words.map((word) => {
    const span = document.createElement('span');
    span.textContent = word;
    return span;
  }));
  element.dataset.payload = data.id;
  picture = new Image();
  picture.onload = () => go(0);
  picture.src = data.image;
}

element.addEventListener('pointermove', (event) => { if (data && event.target.classList.contains('tb-canvas')) hover(at(event)); });
element.addEventListener('pointerdown', (event) => { if (data && event.target.classList.contains('tb-canvas')) hover(at(event)); });
element.addEventListener('pointerleave', () => hover(-1));
element.addEventListener('input', (event) => {
  if (!data) return;
  if (event.target.classList.contains('tb-step')) { pause(); go(Number(event.target.value) - 1); }
  if (event.target.classList.contains('tb-layer')) { layer = Number(event.target.value); draw(); }
  if (event.target.classList.contains('tb-head')) { head = Number(event.target.value); draw(); }
});
element.addEventListener('keydown', (event) => {
  const move = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -data?.cols, ArrowDown: data?.cols }[event.key];
  if (!data || move === undefined || !event.target.classList.contains('tb-canvas')) return;
  event.preventDefault();
  const next = hovered < 0 ? 0 : hovered + move;
  if (next >= 0 && next < data.rows * data.cols) hover(next);
});
element.addEventListener('click', (event) => {
  if (!data) return;
  const button = event.target.closest('[data-which]'), word = all('.tb-answer span').indexOf(event.target);
  if (button) {
    which = Number(button.dataset.which);
    all('[data-which]').forEach((b) => b.setAttribute('aria-pressed', b === button));
    draw();
  } else if (word >= data.first) {
    pause(); go(word - data.first);
  } else if (event.target.classList.contains('tb-play')) {
    if (timer) { pause(); return; }
    if (step === data.steps - 1) go(0);
    $('.tb-play').textContent = '\u23F8'; $('.tb-play').setAttribute('aria-label', 'Pause');
    timer = setInterval(() => {
      if (!element.isConnected || step === data.steps - 1) pause(); else go(step + 1);
    }, 700);
  }
});
new ResizeObserver(draw).observe(element);
watch('value', load);
load();
