// Two orders cut at the page's slider: neither, only the first, only the second, both. The colours differ in lightness, too.
// Swiping shows what the first keeps left of the divider, and what the second keeps right of it.
const FILLS = [DIM, 'rgba(0,114,178,0.62)', 'rgba(230,159,0,0.62)', 'rgba(255,255,255,0.18)'];
const EDGES = [null, '#0072b2', '#e69f00', '#ffffff'];
let cut = null, swiping = false;

const draw = once(() => {
  if (!value || !picture?.complete) return;
  const drawn = surface($('.tl-map'), value.rows / value.cols);
  if (!drawn) return;
  const [ctx, width, height] = drawn, k = value.budget ?? (cut?.n === value.n ? cut.kept : value.n), counts = [0, 0, 0, 0];
  ctx.drawImage(picture, 0, 0, width, height);
  for (let i = 0; i < value.n; i++) {
    const which = (value.a[i] < k ? 1 : 0) + (value.b[i] < k ? 2 : 0);
    counts[which]++;
    if (swiping) continue;
    ctx.fillStyle = FILLS[which]; ctx.fillRect(...rectOf(i, width, height));
    if (EDGES[which]) outline(ctx, i, width, height, EDGES[which], 1.5);
  }
  if (swiping) {
    const divider = width * $('.tl-swipe').value / 100;
    half(ctx, value.a, k, 0, divider, width, height, EDGES[1]);
    half(ctx, value.b, k, divider, width, width, height, EDGES[2]);
    ctx.fillStyle = '#fff'; ctx.fillRect(divider - 1.5, 0, 3, height);
    ctx.beginPath(); ctx.arc(divider, height / 2, 9, 0, 7); ctx.fill();
  }
  const told = swiping ? [0, counts[1] + counts[3], counts[2] + counts[3], 0] : counts;
  element.querySelectorAll('[data-count]').forEach((b) => { b.textContent = told[Number(b.dataset.count)]; });
  element.querySelectorAll('.tl-map-key').forEach((key) => { key.hidden = swiping; });
  $('.tl-a').textContent = value.names[0]; $('.tl-b').textContent = value.names[1];
  element.dataset.counts = counts.join(' ');
  $('.tl-map').setAttribute('aria-label', `${counts[3]} patches kept by both, ${counts[1]} only by ${value.names[0]}, ${counts[2]} only by ${value.names[1]}`);
});

function half(ctx, rank, k, from, to, width, height, edge) {
  ctx.save(); ctx.beginPath(); ctx.rect(from, 0, to - from, height); ctx.clip();
  ctx.fillStyle = DIM;
  for (let i = 0; i < value.n; i++) {
    if (rank[i] < k) outline(ctx, i, width, height, edge, 1.5); else ctx.fillRect(...rectOf(i, width, height));
  }
  ctx.restore();
}

const modes = element.querySelectorAll('.tl-modes input[type=radio]'), swipe = $('.tl-swipe'), map = $('.tl-map');
modes.forEach((mode) => mode.addEventListener('change', () => {
  swiping = mode.value === 'swipe'; swipe.hidden = !swiping;
  draw();
}));
swipe.addEventListener('input', draw);
const drag = (event) => {
  if (!swiping || !(event.buttons & 1)) return;
  const box = map.getBoundingClientRect();
  swipe.value = Math.round(100 * (event.clientX - box.left) / box.width);
  draw();
};
map.addEventListener('pointerdown', (event) => { if (swiping) map.setPointerCapture(event.pointerId); drag(event); });
map.addEventListener('pointermove', drag);

window.trimlens?.onCut((news) => { cut = news; draw(); }, element);
follow(() => {}, draw);
