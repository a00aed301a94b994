// Lines over the rows with a label at each line's end. A row that is only what one sublayer writes
// is no step on the way, so it has a mark and no line.

const MARGIN = { left: 64, top: 12, bottom: 28 };

/** Draw `series` ({values, kind, label, role, faint, marked, told}) into a picture of some width. */
function chart({ title, unit, series, scale, width, height = 260 }) {
  const labels = width < 420 ? 100 : 150;
  const right = width - labels;
  const floor = height - MARGIN.bottom;
  const axis = axisOf(series.flatMap(({ values }) => values).filter(isNumber), scale);
  const x = (row) => MARGIN.left + (row + 0.5) * (right - MARGIN.left) / rows.length;
  const y = (value) => floor - clamp(axis.share(value), 0, 1) * (floor - MARGIN.top);
  const picture = svg('svg', { viewBox: `0 0 ${width} ${height}`, width, height, class: 'picture rows', role: 'img', 'aria-label': title });
  for (const [value, text] of axis.levels()) {
    picture.append(line(MARGIN.left, y(value), right, y(value), 'grid'), label(MARGIN.left - 6, y(value) + 4, text, 'end'));
  }
  picture.append(line(MARGIN.left, floor, right, floor, 'axis'));
  if (axis.share(0) > 0) picture.append(line(MARGIN.left, y(0), right, y(0), 'axis'));
  for (const row of named(right - MARGIN.left)) {
    picture.append(line(x(row), floor, x(row), floor + 4, 'axis'), label(x(row), floor + 17, rows[row].name, 'middle'));
  }
  picture.append(svg('text', { class: 'title', 'text-anchor': 'middle', transform: `translate(12 ${(MARGIN.top + floor) / 2}) rotate(-90)`, text: unit }));
  for (const marked of new Set(series.map((one) => one.marked).filter((row) => row != null))) picture.append(line(x(marked), MARGIN.top, x(marked), floor, 'cursor'));
  for (const one of series) picture.append(...strokes(one, x, y));
  picture.append(...endLabels(series.filter((one) => one.label), width, right, floor, y));
  follow(picture, series, x, right);
  return picture;
}

/** The rows that have room for their names: the last, and as many before it as fit. */
function named(room) {
  const residual = range(0, FINAL).filter((row) => ['input', 'residual'].includes(rows[row].kind));
  const wide = 8 + 7.5 * Math.max(...residual.map((row) => rows[row].name.length), 1);
  const step = Math.max(1, Math.ceil(residual.length * wide / room));
  return residual.filter((_, place) => (residual.length - 1 - place) % step === 0);
}

/** Where numbers lie on the axis, and which of them it names. */
function axisOf(values, scale) {
  const log = scale === 'log';
  const put = (value) => (log ? Math.log10(value) : value);
  const placed = values.filter((value) => !log || value > 0).map(put);
  let [low, high] = [Math.min(...placed), Math.max(...placed)];
  if (!placed.length) [low, high] = [0, 1];
  if (!log && low > 0) low = 0;
  if (low === high) [low, high] = [low - 0.5, high + 0.5];
  const spare = 0.05 * (high - low);
  if (low !== 0 || log) low -= spare;
  high += spare;
  return {
    share: (value) => (log && value <= 0 ? 0 : (put(value) - low) / (high - low)),
    levels: () => (log ? decades(low, high) : roundSteps(low, high, 5).map((at) => [at, legendText(at, 6)])),
  };
}

/** Multiples of 1, 2 or 5 times a power of ten, up to about `most` of them. */
function roundSteps(low, high, most) {
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((digit) => digit * power).find((size) => size >= rough);
  return range(Math.ceil(low / step), Math.floor(high / step)).map((count) => count * step);
}

/** What a logarithmic axis names: powers of ten, with 2 and 5 times each where there are few. */
function decades(low, high) {
  const [from, to] = [Math.floor(low), Math.ceil(high)];
  const digitsOf = high - low < 2.2 ? [1, 2, 5] : [1];
  const every = Math.max(1, Math.ceil((high - low) / 6));
  return range(from, to).filter((power) => power % every === 0).flatMap((power) => digitsOf.map((digit) => digit * 10 ** power))
    .filter((value) => value >= 10 ** low * 0.999 && value <= 10 ** high).map((value) => [value, legendText(value)]);
}

function strokes({ values, kind, marked, faint }, x, y) {
  const nodes = [];
  let path = '';
  let pen = 'M';
  values.forEach((value, row) => {
    if (rows[row].kind === 'write') return;
    if (!isNumber(value)) { pen = 'M'; return; }
    path += `${pen}${x(row).toFixed(1)} ${y(value).toFixed(1)}`;
    pen = 'L';
  });
  nodes.push(svg('path', { class: `line ${kind}`, d: path }));
  if (faint) return nodes;
  values.forEach((value, row) => {
    if (!isNumber(value)) return;
    const writes = rows[row].kind === 'write';
    nodes.push(svg('circle', { class: `dot ${kind}${writes ? ' hollow' : ''}`, cx: x(row), cy: y(value), r: row === marked ? 5 : 2.5 }));
  });
  return nodes;
}

/** Labels at the right, moved apart where lines end close to each other. */
function endLabels(series, width, right, floor, y) {
  const apart = 14;
  const ends = series.map((one) => ({ one, y: y(one.values.findLast(isNumber) ?? 0) })).sort((a, b) => a.y - b.y);
  ends.forEach((end, place) => { if (place) end.y = Math.max(end.y, ends[place - 1].y + apart); });
  let most = floor;
  for (const end of ends.reverse()) {
    end.y = Math.min(end.y, most);
    most = end.y - apart;
  }
  return ends.map(({ one, y: at }) => svg('text', { class: `named ${one.kind}`, x: right + 6, y: at + 4 },
    svg('tspan', { class: 'sign', text: '\u25cf ' }), svg('tspan', { text: cut(one.label, (width - right - 22) / 6.4 - (one.role ?? '').length) + (one.role ?? '') })));
}

/** A text cut to about so many letters. */
function cut(text, most) {
  const letters = [...text];
  if (letters.length <= most) return text;
  return `${letters.slice(0, Math.max(2, most - 1)).join('')}\u2026`;
}

/** The numbers of the row nearest to the pointer. */
function follow(picture, series, x, right) {
  picture.addEventListener('pointermove', (event) => {
    const frame = picture.getBoundingClientRect();
    const at = (event.clientX - frame.left) * picture.viewBox.baseVal.width / frame.width;
    const row = clamp(Math.round((at - MARGIN.left) / (right - MARGIN.left) * rows.length - 0.5), 0, FINAL);
    const pairs = series.filter((one) => one.label).map((one) => [one.label + (one.role ?? ''), one.told(one.values[row])]);
    const left = frame.left + x(row) * frame.width / picture.viewBox.baseVal.width;
    placeTip({ left, right: left, top: event.clientY, bottom: event.clientY }, [html('b', { text: rows[row].name })], pairs);
  });
  picture.addEventListener('pointerleave', hideTip);
}
