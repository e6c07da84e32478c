// A patch is chosen here; its reason comes back as marks: the patch, and the kept one that made it redundant.
let pointed = -1;

const draw = once(() => {
  if (!value || !picture?.complete) return;
  const drawn = surface($('.tl-map'), value.rows / value.cols);
  if (!drawn) return;
  const [ctx, width, height] = drawn, reason = value.reason;
  ctx.drawImage(picture, 0, 0, width, height);
  for (let i = 0; i < value.n; i++) {
    if (value.rank[i] < value.kept) outline(ctx, i, width, height, 'rgba(255,255,255,0.55)', 1);
    else { ctx.fillStyle = 'rgba(12,14,20,0.68)'; ctx.fillRect(...rectOf(i, width, height)); }
  }
  if (reason) {
    if (reason.nearest !== null) {
      ctx.strokeStyle = ACCENT; ctx.lineWidth = 2.5; ctx.setLineDash([6, 4]);
      ctx.beginPath(); ctx.moveTo(...centreOf(reason.token, width, height)); ctx.lineTo(...centreOf(reason.nearest, width, height));
      ctx.stroke(); ctx.setLineDash([]);
      outline(ctx, reason.nearest, width, height, '#0072b2', 4);
    }
    outline(ctx, reason.token, width, height, ACCENT, 4);
  }
  if (pointed >= 0) outline(ctx, pointed, width, height, '#fff', 2);
  element.dataset.token = reason ? reason.token : '';
});

function pick(i) { if (i >= 0) trigger('pick', { token: i }); }

element.addEventListener('pointermove', (event) => {
  if (value && event.target.classList.contains('tl-map')) { pointed = patchAt(event, event.target); draw(); }
});
element.addEventListener('pointerleave', () => { pointed = -1; draw(); });
element.addEventListener('click', (event) => {
  if (value && event.target.classList.contains('tl-map')) pick(patchAt(event, event.target));
});
element.addEventListener('keydown', (event) => {
  if (!value || !event.target.classList.contains('tl-map')) return;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -value.cols, ArrowDown: value.cols }[event.key];
  if (event.key === 'Enter') pick(pointed);
  if (step === undefined) return;
  event.preventDefault();
  const next = pointed < 0 ? 0 : pointed + step;
  if (next >= 0 && next < value.n) { pointed = next; draw(); }
});
// The words are made of numbers and escaped labels (viz/reasons.py).
follow(() => { $('.tl-words').innerHTML = value.words; }, draw);
