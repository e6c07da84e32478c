// Every token at its place in feature space, drawn as its patch; kept ones are framed. Nothing here asks the server.
const PAD = 34;
let cut = null, pointed = -1, frame = null;

function places(width, height) {
  const range = (values) => { const low = Math.min(...values), high = Math.max(...values); return [low, Math.max(high - low, 1e-6)]; };
  const [left, wide] = range(value.x), [low, tall] = range(value.y);
  const at = (i) => [PAD + (value.x[i] - left) / wide * (width - 2 * PAD), height - PAD - (value.y[i] - low) / tall * (height - 2 * PAD)];
  return Array.from({ length: value.n }, (_, i) => at(i));
}

function thumbnail(ctx, i, size) {
  const [x, y] = frame.at[i], [u, v, w, h] = rectOf(i, picture.naturalWidth, picture.naturalHeight);
  ctx.drawImage(picture, u, v, w, h, x - size / 2, y - size / 2, size, size);
  return [x - size / 2, y - size / 2, size, size];
}

const draw = once(() => {
  if (!value || !picture?.complete) return;
  const drawn = surface($('.tl-map'), $('.tl-map').clientWidth < 500 ? 0.9 : 0.62);
  if (!drawn) return;
  const [ctx, width, height] = drawn, k = value.budget ?? (cut?.n === value.n ? cut.kept : value.n);
  if (!frame || frame.width !== width || frame.of !== value) frame = { width, of: value, at: places(width, height) };
  const size = Math.max(7, Math.min(22, width / 2.2 / Math.sqrt(value.n)));
  const byRank = [...value.rank.keys()].sort((a, b) => value.rank[b] - value.rank[a]);
  // The first picks lie on top.
  for (const i of byRank) {
    const stays = value.rank[i] < k;
    ctx.globalAlpha = stays ? 1 : 0.28;
    const box = thumbnail(ctx, i, stays ? size : size * 0.75);
    ctx.globalAlpha = 1;
    if (stays) { ctx.strokeStyle = '#0072b2'; ctx.lineWidth = 2; ctx.strokeRect(...box); }
  }
  if (pointed >= 0) {
    const box = thumbnail(ctx, pointed, size * 2);
    ctx.strokeStyle = ACCENT; ctx.lineWidth = 3; ctx.strokeRect(...box);
  }
  ctx.fillStyle = INK; ctx.font = '12px system-ui'; ctx.textAlign = 'left';
  ctx.fillText('first component \u2192', 6, height - 8);
  ctx.save(); ctx.translate(14, height - 24); ctx.rotate(-Math.PI / 2); ctx.fillText('second component \u2192', 0, 0); ctx.restore();
  const [one, two] = value.explained.map((share) => (100 * share).toFixed(0));
  $('.tl-kept').textContent = `${k} of ${value.n} patches kept (framed)`;
  $('.tl-variance').textContent = `the two components hold ${one}% and ${two}% of the variance`;
  element.dataset.kept = k;
  element.dataset.pointed = pointed;
});

function nearest(event) {
  const box = $('.tl-map').getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
  let best = -1, least = 22 ** 2;
  frame?.at.forEach(([a, b], i) => { const d = (a - x) ** 2 + (b - y) ** 2; if (d < least) { least = d; best = i; } });
  return best;
}

function point(i) {
  if (i === pointed) return;
  pointed = i;
  draw();
}

element.addEventListener('pointermove', (event) => {
  if (!value || !event.target.classList.contains('tl-map')) return;
  point(nearest(event));
  window.trimlens?.highlight(pointed);
});
element.addEventListener('pointerleave', () => { point(-1); window.trimlens?.highlight(-1); });
window.trimlens?.onCut((news) => { cut = news; draw(); }, element);
window.trimlens?.onHover((i) => { if (value && i < value.n) point(i); }, element);
follow(() => { frame = null; pointed = -1; }, draw);
