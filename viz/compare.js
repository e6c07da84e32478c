// Two orders cut at the page's slider: neither, only the first, only the second, both. The colours differ in lightness, too.
const FILLS = [DIM, 'rgba(0,114,178,0.62)', 'rgba(230,159,0,0.62)', 'rgba(255,255,255,0.18)'];
const EDGES = [null, '#0072b2', '#e69f00', '#ffffff'];
let cut = null;

const draw = once(() => {
  if (!value || !picture?.complete) return;
  const drawn = surface($('.tl-map'), value.rows / value.cols);
  if (!drawn) return;
  const [ctx, width, height] = drawn, k = cut?.n === value.n ? cut.kept : value.n, counts = [0, 0, 0, 0];
  ctx.drawImage(picture, 0, 0, width, height);
  for (let i = 0; i < value.n; i++) {
    const which = (value.a[i] < k ? 1 : 0) + (value.b[i] < k ? 2 : 0);
    counts[which]++;
    ctx.fillStyle = FILLS[which]; ctx.fillRect(...rectOf(i, width, height));
    if (EDGES[which]) outline(ctx, i, width, height, EDGES[which], 1.5);
  }
  element.querySelectorAll('[data-count]').forEach((b) => { b.textContent = counts[Number(b.dataset.count)]; });
  $('.tl-a').textContent = value.names[0]; $('.tl-b').textContent = value.names[1];
  element.dataset.counts = counts.join(' ');
  $('.tl-map').setAttribute('aria-label', `${counts[3]} patches kept by both, ${counts[1]} only by ${value.names[0]}, ${counts[2]} only by ${value.names[1]}`);
});

window.trimlens?.onCut((news) => { cut = news; draw(); }, element);
follow(() => {}, draw);
