// The patches of the point that is pointed at in the figure; a click on a point chooses it.
const PLOT = '#tradeoff-plot .js-plotly-plot';
let shown = null, figure = null;

const draw = once(() => {
  if (!value || !picture?.complete) return;
  const drawn = surface($('.tl-map'), value.rows / value.cols);
  if (!drawn) return;
  const [ctx, width, height] = drawn, { kept, caption } = shown ?? value, bytes = atob(kept);
  ctx.drawImage(picture, 0, 0, width, height);
  let count = 0;
  for (let i = 0; i < value.n; i++) {
    if (bytes.charCodeAt(i >> 3) & (128 >> (i & 7))) { outline(ctx, i, width, height, 'rgba(255,255,255,0.75)', 1); count++; continue; }
    ctx.fillStyle = DIM; ctx.fillRect(...rectOf(i, width, height));
  }
  element.dataset.kept = count;
  $('.tl-caption').textContent = caption;
  $('.tl-map').setAttribute('aria-label', caption);
});

// Every new figure is a new element, so the listeners have to be attached again.
function attach() {
  const plot = document.querySelector(PLOT);
  if (!plot || plot === figure || !plot.on) return;
  figure = plot;
  const at = (event) => event.points[0]?.customdata;
  plot.on('plotly_hover', (event) => { const d = at(event); if (d) { shown = { kept: d[0], caption: d[1] }; draw(); } });
  plot.on('plotly_unhover', () => { shown = null; draw(); });
  plot.on('plotly_click', (event) => { const d = at(event); if (d) trigger('choose', { method: d[2], lam: d[3] }); });
  element.dataset.attached = 'yes';
}

const watcher = new MutationObserver(() => { if (element.isConnected) attach(); else watcher.disconnect(); });
watcher.observe(element.closest('#lab') ?? document.body, { childList: true, subtree: true });
attach();
follow(() => { shown = null; }, draw);
