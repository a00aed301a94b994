// Layers by positions, drawn on a canvas as large as the window of a scrolling box: 2,000 positions
// cost no more than those in view. Input tokens, row names and the final layer never scroll away.

const HEAD = 42;
const GAP = 3;
const box = document.getElementById('map');
const canvas = document.getElementById('canvas');
const context = canvas.getContext('2d');
const clipped = fitter(context);
const sizes = { names: 60, cell: 64, row: 24, width: 0, height: 0 };
const fonts = { mono: 'monospace', sans: 'sans-serif' };
const ink = {};
let asked = false;

/** Sizes of everything, from the room there is. */
function measureMap() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ['paper', 'panel', 'ink', 'soft', 'rule', 'faint']) ink[name] = style.getPropertyValue(`--${name}`).trim();
  for (const name of ['mono', 'sans']) fonts[name] = style.getPropertyValue(`--${name}`).trim();
  context.font = `12px ${fonts.mono}`;
  sizes.names = Math.ceil(Math.max(...rows.map(({ name }) => context.measureText(name).width))) + 18;
  sizes.row = rows.length > 16 ? 22 : 27;
  const room = box.clientWidth - sizes.names;
  const least = box.clientWidth < 600 ? 56 : 64;
  sizes.cell = Math.floor(clamp(room / positions(), least, 104));
  const whole = [sizes.names + positions() * sizes.cell, HEAD + GAP + rows.length * sizes.row];
  const node = document.getElementById('room');
  [node.style.width, node.style.height] = whole.map((size) => `${size}px`);
  sizes.width = Math.min(box.clientWidth, whole[0]);
  sizes.height = Math.min(box.clientHeight, whole[1]);
  const dense = devicePixelRatio || 1;
  [canvas.width, canvas.height] = [sizes.width, sizes.height].map((size) => Math.round(size * dense));
  [canvas.style.width, canvas.style.height] = [`${sizes.width}px`, `${sizes.height}px`];
  context.setTransform(dense, 0, 0, dense, 0, 0);
  ask();
}

/** Draw before the next frame, once however often it is asked for. */
function ask() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => { asked = false; drawMap(); });
}

const xOf = (position) => sizes.names + position * sizes.cell - box.scrollLeft;
const yOf = (row) => (row === FINAL ? HEAD : HEAD + GAP + (FINAL - row) * sizes.row - box.scrollTop);

function drawMap() {
  const { width, height, names, cell, row: tall } = sizes;
  const first = Math.max(0, Math.floor(box.scrollLeft / cell));
  const last = Math.min(positions() - 1, Math.floor((box.scrollLeft + width - names) / cell));
  const top = HEAD + tall + GAP;
  const low = clamp(FINAL - Math.ceil((box.scrollTop + height - HEAD) / tall), 0, FINAL);
  const high = clamp(FINAL - Math.floor(box.scrollTop / tall), 0, FINAL - 1);
  context.fillStyle = ink.paper;
  context.fillRect(0, 0, width, height);
  const body = FINAL ? range(low, high) : [];
  within(names, top, width, height, () => body.forEach((row) => drawCells(row, first, last)));
  within(names, HEAD, width, HEAD + tall, () => drawCells(FINAL, first, last));
  within(names, 0, width, HEAD, () => range(first, last).forEach(drawHead));
  within(0, top, names, height, () => body.forEach(drawName));
  within(0, HEAD, names, HEAD + tall, () => drawName(FINAL));
  write('reads', 6, HEAD - 13, names, `11px ${fonts.sans}`, ink.soft);
  drawRings(top);
  context.fillStyle = ink.soft;
  context.fillRect(0, HEAD + tall, width, 1);
}

const range = (from, to) => Array.from({ length: Math.max(0, to - from + 1) }, (_, step) => from + step);

function within(left, top, right, bottom, draw) {
  context.save();
  context.beginPath();
  context.rect(left, top, right - left, bottom - top);
  context.clip();
  draw();
  context.restore();
}

function drawCells(row, first, last) {
  const scale = scaleOf(statistic());
  const stops = ramp(scale.two);
  for (let position = first; position <= last; position += 1) {
    const [x, y] = [xOf(position), yOf(row)];
    const value = valueAt(row, position);
    let color = ink.ink;
    if (isNumber(value)) {
      const mixed = mix(stops, scale.share(value));
      context.fillStyle = `rgb(${mixed})`;
      context.fillRect(x, y, sizes.cell - 1, sizes.row - 1);
      color = onColor(mixed);
    } else hatch(x, y);
    const token = prompt().top[row][position][0];
    const bold = token === prompt().final[position];
    drawToken(token, x + 5, y + sizes.row / 2 + 4, sizes.cell - 10, color, { bold, under: token === prompt().next[position] });
  }
}

function hatch(x, y) {
  context.save();
  context.beginPath();
  context.rect(x, y, sizes.cell - 1, sizes.row - 1);
  context.clip();
  context.strokeStyle = ink.rule;
  for (let at = x - sizes.row; at < x + sizes.cell; at += 6) {
    context.beginPath();
    context.moveTo(at, y + sizes.row);
    context.lineTo(at + sizes.row, y);
    context.stroke();
  }
  context.restore();
}

/** A token in its room, the signs for spaces faint, underlined if so asked. */
function drawToken(token, x, y, room, color, { bold = false, under = false }) {
  const [before, inner, after] = split(token);
  context.font = `${bold ? '600 ' : ''}12px ${fonts.mono}`;
  context.fillStyle = color;
  const spaces = clipped(before, room);
  context.globalAlpha = 0.45;
  context.fillText(spaces.text, x, y);
  context.globalAlpha = 1;
  const start = x + spaces.width;
  if (start >= x + room) return;
  const shown = clipped(inner || after, x + room - start);
  context.fillText(shown.text, start, y);
  if (under) context.fillRect(x, y + 3, spaces.width + shown.width, 1.5);
}

function write(text, x, y, room, font, color) {
  context.font = font;
  context.fillStyle = color;
  context.fillText(clipped(text, room).text, x, y);
}

/** An input token and its position. */
function drawHead(position) {
  const x = xOf(position);
  if (position === state.position) {
    context.fillStyle = ink.faint;
    context.fillRect(x, 0, sizes.cell - 1, HEAD - 1);
  }
  write(String(position), x + 5, 14, sizes.cell - 8, `11px ${fonts.sans}`, ink.soft);
  drawToken(prompt().tokens[position], x + 5, HEAD - 11, sizes.cell - 10, ink.ink, {});
}

function drawName(row) {
  const y = yOf(row);
  if (row === state.row) {
    context.fillStyle = ink.faint;
    context.fillRect(0, y, sizes.names - 1, sizes.row - 1);
  }
  const bold = row === state.row || row === FINAL ? '600 ' : '';
  write(rows[row].name, 6, y + sizes.row / 2 + 4, sizes.names - 8, `${bold}12px ${fonts.mono}`, rows[row].kind === 'write' ? ink.soft : ink.ink);
}

/** Rings around pinned cells and the chosen one; those under the final layer are cut off there. */
function drawRings(top) {
  const ring = (row, position, color, wide, inset) => {
    within(sizes.names, row === FINAL ? HEAD - 2 : top - 1, sizes.width, sizes.height, () => {
      context.strokeStyle = color;
      context.lineWidth = wide;
      context.strokeRect(xOf(position) + inset, yOf(row) + inset, sizes.cell - 1 - 2 * inset, sizes.row - 1 - 2 * inset);
    });
  };
  for (const one of state.pins) {
    ring(one.row, one.position, seriesColor(one.color), 3, 1.5);
    ring(one.row, one.position, ink.paper, 1, 3.5);
  }
  ring(state.row, state.position, ink.ink, 2, 0);
}

const seriesColor = (number) => getComputedStyle(document.documentElement).getPropertyValue(`--series-${number}`).trim();

/** The cell under the pointer, or null beside all cells. */
function cellAt(event) {
  const { left, top } = canvas.getBoundingClientRect();
  const [x, y] = [event.clientX - left, event.clientY - top];
  if (x < sizes.names || y < HEAD) return null;
  const position = Math.floor((x - sizes.names + box.scrollLeft) / sizes.cell);
  const row = y < HEAD + sizes.row + GAP ? FINAL : FINAL - Math.floor((y - HEAD - GAP + box.scrollTop) / sizes.row);
  return position < positions() && row >= 0 ? { row, position } : null;
}

/** Scroll the box until the chosen cell is in it; the page stays where it is. */
function intoView() {
  const { names, cell, row: tall, width, height } = sizes;
  const [left, right] = [state.position * cell, (state.position + 1) * cell];
  if (left < box.scrollLeft) box.scrollLeft = left;
  else if (right > box.scrollLeft + width - names) box.scrollLeft = right - width + names;
  if (state.row === FINAL) return;
  const [upper, lower] = [(FINAL - state.row - 1) * tall, HEAD + GAP + (FINAL - state.row + 1) * tall];
  if (upper < box.scrollTop) box.scrollTop = upper;
  else if (lower > box.scrollTop + height) box.scrollTop = lower - height;
}
