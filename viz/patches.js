// What every patch map shares; a component's own script follows in the same function.
const DIM = 'rgba(12,14,20,0.80)';
const ACCENT = '#ff8a1f';
const INK = '#6f7b8d';
let value = null, picture = null;

const $ = (selector) => element.querySelector(selector);

function rectOf(i, width, height) {
  const row = Math.floor(i / value.cols), col = i % value.cols;
  const x = Math.round(col * width / value.cols), y = Math.round(row * height / value.rows);
  return [x, y, Math.round((col + 1) * width / value.cols) - x, Math.round((row + 1) * height / value.rows) - y];
}

function centreOf(i, width, height) {
  const [x, y, w, h] = rectOf(i, width, height);
  return [x + w / 2, y + h / 2];
}

// A canvas as wide as its column at the screen's resolution; null while it cannot be seen.
function surface(canvas, aspect) {
  const width = canvas?.clientWidth, ratio = window.devicePixelRatio || 1;
  if (!width) return null;
  const height = Math.round(width * aspect);
  canvas.style.height = height + 'px';
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
  }
  const ctx = canvas.getContext('2d');
  ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
  ctx.clearRect(0, 0, width, height);
  return [ctx, width, height];
}

function patchAt(event, canvas) {
  const box = canvas.getBoundingClientRect();
  const col = Math.floor((event.clientX - box.left) / box.width * value.cols);
  const row = Math.floor((event.clientY - box.top) / box.height * value.rows);
  return row < 0 || col < 0 || row >= value.rows || col >= value.cols ? -1 : row * value.cols + col;
}

function outline(ctx, i, width, height, color, line) {
  const [x, y, w, h] = rectOf(i, width, height);
  ctx.strokeStyle = color; ctx.lineWidth = line;
  ctx.strokeRect(x + line / 2, y + line / 2, w - line, h - line);
}

// Draws once a frame however often it is asked to: a slider moves faster than the screen.
function once(draw) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; if (element.isConnected) draw(); });
  };
}

// Follows the component's value: `begin` sees it first, `draw` runs when the picture is there and at every resize.
function follow(begin, draw) {
  const load = () => {
    if (!props.value || !props.value.image || props.value === value) { draw(); return; }
    value = props.value;
    begin();
    picture = new Image();
    picture.onload = draw;
    picture.src = value.image;
  };
  new ResizeObserver(draw).observe(element);
  watch('value', load);
  load();
}
