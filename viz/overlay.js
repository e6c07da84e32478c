// Runs once inside the gr.HTML component. The payload holds a rank per patch; every cut is made here, without a request.
const STOPS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
const DIM = 'rgba(12,14,20,0.80)';
const ACCENT = '#ff8a1f';
let data = null, picture = null, similarity = null, view = 'kept', percent = 75, hovered = -1;
let listeners = [], told = '';

const $ = (selector) => element.querySelector(selector);

// As Python rounds, halves to even, or the page and the model would disagree by one patch; never less than one.
function atLeastOne(exact) {
  const floor = Math.floor(exact), part = exact - floor;
  return Math.max(1, part > 0.5 || (part === 0.5 && floor % 2 === 1) ? floor + 1 : floor);
}

const keptCount = () => atLeastOne(data.n * (1 - percent / 100));

// Rows and columns of the smaller picture that stands for k patches, as vlm.images.smaller makes it.
const shrunk = (k) => [data.rows, data.cols].map((side) => atLeastOne(side * Math.sqrt(k / data.n)));

// Where the picture itself was made smaller, no patch is pruned.
const isKept = (i, k) => data.whole || data.rank[i] < k;

function color(t) {
  const x = Math.min(Math.max(t, 0), 1) * (STOPS.length - 1), i = Math.min(Math.floor(x), STOPS.length - 2), f = x - i;
  return STOPS[i].map((a, c) => Math.round(a + (STOPS[i + 1][c] - a) * f));
}

function fill(ctx, rect, i, k, size) {
  const [x, y, w, h] = rect, kept = isKept(i, k);
  if (view === 'kept') {
    if (!kept) { ctx.fillStyle = DIM; ctx.fillRect(x, y, w, h); }
    return;
  }
  const t = view === 'importance' ? data.importance[i] : 1 - data.rank[i] / Math.max(1, data.n - 1);
  const [r, g, b] = color(t);
  ctx.fillStyle = `rgba(${r},${g},${b},${view === 'importance' || kept ? 0.62 : 0.25})`;
  ctx.fillRect(x, y, w, h);
  if (view === 'order' && kept && size >= 20) {
    ctx.fillStyle = '#fff'; ctx.font = `600 ${Math.min(14, size * 0.38)}px system-ui`; ctx.textAlign = 'center';
    ctx.textBaseline = 'middle'; ctx.shadowColor = '#000'; ctx.shadowBlur = 3;
    ctx.fillText(data.rank[i] + 1, x + w / 2, y + h / 2); ctx.shadowBlur = 0;
  }
}

function rectOf(i, w, h) {
  const row = Math.floor(i / data.cols), col = i % data.cols;
  const x = Math.round(col * w / data.cols), y = Math.round(row * h / data.rows);
  return [x, y, Math.round((col + 1) * w / data.cols) - x, Math.round((row + 1) * h / data.rows) - y];
}

function draw() {
  const canvas = $('.tl-canvas');
  if (!data || !picture || !picture.complete || !canvas) return;
  const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth || 448, height = width * data.rows / data.cols;
  canvas.style.height = height + 'px';
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
  }
  const ctx = canvas.getContext('2d'), k = keptCount();
  ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
  ctx.drawImage(picture, 0, 0, width, height);
  const size = width / data.cols;
  for (let i = 0; i < data.n; i++) fill(ctx, rectOf(i, width, height), i, k, size);
  ctx.lineWidth = 1; ctx.strokeStyle = view === 'kept' ? 'rgba(255,255,255,0.75)' : 'rgba(255,255,255,0.9)';
  for (let i = 0; i < data.n; i++) {
    if (data.whole || !isKept(i, k)) continue;
    const [x, y, w, h] = rectOf(i, width, height);
    ctx.strokeRect(x + 0.5, y + 0.5, w - 1, h - 1);
  }
  if (hovered >= 0) mark(ctx, width, height, k);
  const [rows, cols] = shrunk(k), seen = data.whole ? rows * cols : k;
  const pruned = (100 * (1 - seen / data.n)).toFixed(1).replace(/\.0$/, '');
  $('.tl-count').textContent = data.whole ? `seen in ${rows} x ${cols} = ${seen} of ${data.n} tokens` : `${k} of ${data.n} patches kept`;
  $('.tl-share').textContent = `${pruned}% pruned`;
  element.dataset.kept = k;
  canvas.setAttribute('aria-label', `${$('.tl-count').textContent}, ${pruned}% pruned, by ${data.method}`);
  if (told !== `${data.id} ${k}`) { told = `${data.id} ${k}`; tell('cut', { id: data.id, n: data.n, kept: k }); }
}

// Other tools follow the cut and the pointed-at patch; one whose element has left the page is forgotten.
function tell(what, news) {
  listeners = listeners.filter((listener) => listener.owner.isConnected);
  for (const listener of listeners) if (listener.what === what) listener.call(news);
}

function nearestKept(i, k) {
  let best = -1, most = -2;
  for (let j = 0; j < data.n; j++) {
    if (j === i || data.rank[j] >= k) continue;
    const s = similarity[i * data.n + j] / 127.5 - 1;
    if (s > most) { most = s; best = j; }
  }
  return [best, most];
}

function mark(ctx, width, height, k) {
  const centre = (i) => { const [x, y, w, h] = rectOf(i, width, height); return [x + w / 2, y + h / 2]; };
  const [x, y, w, h] = rectOf(hovered, width, height);
  ctx.lineWidth = 3; ctx.strokeStyle = ACCENT; ctx.strokeRect(x + 1, y + 1, w - 2, h - 2);
  const row = Math.floor(hovered / data.cols) + 1, col = hovered % data.cols + 1, rank = data.rank[hovered];
  const lines = [`row ${row}, column ${col}: ${isKept(hovered, k) ? 'kept' : 'pruned'}`,
    data.whole ? 'seen in fewer pixels' : `rank ${rank + 1} of ${data.n} (goes above ${(100 * (1 - (rank + 0.5) / data.n)).toFixed(0)}% pruning)`,
    `importance ${data.importance[hovered].toFixed(2)} (${data.scorer})`];
  if (similarity && !data.whole) {
    const [j, s] = nearestKept(hovered, k);
    if (j >= 0) {
      lines.push(`nearest kept: row ${Math.floor(j / data.cols) + 1}, column ${j % data.cols + 1}, cosine ${s.toFixed(2)}`);
      const [a, b] = centre(hovered), [c, d] = centre(j), [u, v, p, q] = rectOf(j, width, height);
      ctx.setLineDash([5, 4]); ctx.lineWidth = 2;
      ctx.beginPath(); ctx.moveTo(a, b); ctx.lineTo(c, d); ctx.stroke();
      ctx.strokeRect(u + 1, v + 1, p - 2, q - 2); ctx.setLineDash([]);
    }
  }
  const tip = $('.tl-tip');
  tip.replaceChildren(...lines.map((line) => { const div = document.createElement('div'); div.textContent = line; return div; }));
  tip.style.display = 'block';
  tip.style.left = Math.max(0, Math.min(x + w + 8, width - tip.offsetWidth)) + 'px';
  tip.style.top = Math.max(0, y + h + 8 + tip.offsetHeight > height ? y - tip.offsetHeight - 8 : y + h + 8) + 'px';
}

function hover(i) {
  if (i === hovered) return;
  hovered = i;
  if (i < 0 && $('.tl-tip')) $('.tl-tip').style.display = 'none';
  draw();
  tell('hover', i);
}

function at(event) {
  const box = $('.tl-canvas').getBoundingClientRect();
  const col = Math.floor((event.clientX - box.left) / box.width * data.cols);
  const row = Math.floor((event.clientY - box.top) / box.height * data.rows);
  return row < 0 || col < 0 || row >= data.rows || col >= data.cols ? -1 : row * data.cols + col;
}

// A smaller picture has no kept patches to explain, and no order.
function explain() {
  if (data.whole && view === 'order') view = 'kept';
  element.querySelectorAll('[data-view]').forEach((b) => {
    b.setAttribute('aria-pressed', b.dataset.view === view);
    b.hidden = data.whole && b.dataset.view === 'order';
  });
  const told = data.whole && view === 'kept' ? 'whole' : view;
  element.querySelectorAll('[data-legend]').forEach((l) => { l.hidden = l.dataset.legend !== told; });
  $('.tl-cut').hidden = data.whole;
}

function load() {
  const value = props.value;
  if (!value || !value.image || value === data) { draw(); return; }
  data = value; hovered = -1;
  const bytes = data.similarity ? atob(data.similarity) : '';
  similarity = bytes ? Uint8Array.from(bytes, (c) => c.charCodeAt(0)) : null;
  $('.tl-empty').style.display = 'none';
  $('.tl-body').style.display = 'block';
  $('.tl-method').textContent = data.title;
  element.dataset.payload = data.id;
  explain();
  picture = new Image();
  picture.onload = draw;
  trigger('loaded');
  picture.src = data.image;
}

element.addEventListener('pointermove', (event) => {
  if (data && event.target.classList.contains('tl-canvas')) hover(at(event));
});
element.addEventListener('pointerdown', (event) => {
  if (data && event.target.classList.contains('tl-canvas')) hover(at(event));
});
element.addEventListener('pointerleave', () => hover(-1));
element.addEventListener('keydown', (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -data?.cols, ArrowDown: data?.cols }[event.key];
  if (!data || step === undefined || !event.target.classList.contains('tl-canvas')) return;
  event.preventDefault();
  const next = (hovered < 0 ? 0 : hovered + step);
  if (next >= 0 && next < data.n) hover(next);
});
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-view]');
  if (!button) return;
  view = button.dataset.view;
  explain();
  draw();
});
new ResizeObserver(draw).observe(element);
watch('value', load);

// What the page's slider and token box call; both return the other one's new value.
window.trimlens = {
  cut(value) { percent = Math.min(Math.max(value, 0), 99.9); draw(); return data ? keptCount() : null; },
  keep(count) {
    if (!data) return percent;
    percent = Math.round(1000 * (1 - Math.min(Math.max(count, 1), data.n) / data.n)) / 10;
    draw();
    return percent;
  },
  // onCut gets {id, n, kept} now and after every cut; onHover the patch pointed at, -1 for none.
  onCut(call, owner) {
    listeners.push({ what: 'cut', call, owner });
    if (data) call({ id: data.id, n: data.n, kept: keptCount() });
  },
  onHover(call, owner) { listeners.push({ what: 'hover', call, owner }); },
  highlight(i) { if (data && i < data.n) hover(i); },
};
load();
