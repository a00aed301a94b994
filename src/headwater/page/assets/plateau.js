// The two pictures of one direction, drawn by the rules of plateau.py at the width there is.

const HEIGHT = 360;
const [LEFT, RIGHT, TOP, BOTTOM, STRIP] = [72, 14, 26, 46, 20];
const HALF = 10 ** 0.25;
const SHAPES = { 'off-slope': 'M0 -3.2L3.2 0L0 3.2L-3.2 0Z', forward: 'M-3 -4L4.5 0L-3 4Z', backward: 'M3 -4L-4.5 0L3 4Z' };
const clamp = (share) => Math.min(1, Math.max(0, share));
const log = (value) => (value ? Math.log10(Math.abs(value)) : null);
const short = (value) => (isNumber(value) ? neat(Number(value.toPrecision(2))) : 'n/a');
const central = (direction) => direction.off_slope.map((off) => direction.slope + off);

/** A round number as short as it can be written. */
function neat(value) {
  const size = Math.abs(value);
  return (size && (size < 1e-3 || size >= 1e5) ? Number(value.toPrecision(6)).toExponential() : String(Number(value.toPrecision(6)))).replaceAll('-', '\u2212');
}

const unit = (size) => neat(Number(size.toPrecision(4)));

const power = (exponent) => (exponent ? `10${[...String(exponent)].map((digit) => (digit === '-' ? '\u207b' : '\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079'[digit])).join('')}` : '1');

/** Where steps and heights lie; what is beyond the edge lies at the edge. */
function frameOf(width, span, low, high, strip) {
  const [right, bottom, floor] = [width - RIGHT, HEIGHT - BOTTOM, HEIGHT - BOTTOM - strip];
  const [first, last] = [log(span[0]) - 0.25, log(span[1]) + 0.25];
  return {
    width, right, bottom, floor, first, last,
    x: (step) => LEFT + clamp((log(step) - first) / (last - first)) * (right - LEFT),
    y: (height) => floor - clamp((height - low) / (high - low)) * (floor - TOP),
    holds: (height) => isNumber(height) && height >= low && height <= high,
  };
}

function drawErrors(direction, { span, size }, width) {
  const series = { 'off-gradient': direction.off_gradient, 'off-slope': direction.off_slope };
  const both = Object.values(series).flat();
  const zeros = both.includes(0);
  const logs = [...both, ...direction.error, direction.bar].filter(Boolean).map(log);
  if (!logs.length) logs.push(-16);
  const spare = Math.max(0, 1.3 - Math.max(...logs) + Math.min(...logs)) / 2;
  const [low, high] = [Math.min(...logs) - 0.35 - spare, Math.max(...logs) + 0.35 + spare];
  const frame = frameOf(width, span, low, high, zeros ? STRIP : 0);
  const every = Math.ceil(26 * (high - low) / (frame.floor - TOP));
  const heights = [];
  for (let k = Math.ceil(low); k <= high; k += every) heights.push([k, power(k)]);
  const yOf = (value) => (value ? frame.y(log(value)) : frame.bottom);
  const taken = Object.values(series).flatMap((values) => values.map((value, place) => [frame.x(direction.steps[place]), yOf(value)]));
  const picture = ground(direction, frame, heights, size, 'size of the error', 'Error of the central difference', taken);
  if (zeros) picture.append(line(LEFT, frame.floor, frame.right, frame.floor, 'edge'), label(LEFT - 7, frame.bottom + 4, '0', 'end'));
  if (direction.bar) {
    const y = frame.y(log(direction.bar));
    picture.append(line(LEFT, y, frame.right, y, 'bar-line'), label(LEFT + 6, y - 5, `error bar ${short(direction.bar)}`, 'start', 'named'));
  }
  for (const [name, values] of Object.entries({ model: direction.error, ...series })) picture.append(path(name, frame, direction.steps, values.map(log)));
  direction.steps.forEach((step, place) => picture.append(group(place, Object.entries(series).map(([name, values]) =>
    mark(name, frame.x(step), yOf(values[place]), !values[place])))));
  return picture;
}

function drawSlopes(direction, { span, size }, width) {
  const [low, high] = hull(direction);
  const frame = frameOf(width, span, low, high, 0);
  const families = Object.entries({ backward: direction.backward, forward: direction.forward, central: central(direction) });
  const taken = families.flatMap(([, values]) => values.flatMap((value, place) => (isNumber(value) ? [[frame.x(direction.steps[place]), frame.y(value)]] : [])));
  const picture = ground(direction, frame, ticks(low, high, 7).map((value) => [value, neat(value)]), size, 'slope', 'Slopes', taken);
  if (direction.linear) {
    const [top, bottom] = [0.9, 1.1].map((share) => frame.y(share * direction.slope)).sort((a, b) => a - b);
    picture.append(svg('rect', { class: 'tenth', x: LEFT, y: top, width: frame.right - LEFT, height: bottom - top }));
  }
  const y = frame.y(direction.gradient);
  picture.append(line(LEFT, y, frame.right, y, 'claimed'));
  for (const [name, values] of families) picture.append(path(name, frame, direction.steps, values.map((value) => (frame.holds(value) ? value : null))));
  direction.steps.forEach((step, place) => picture.append(group(place, families.filter(([, values]) => isNumber(values[place])).map(([name, values]) =>
    mark(name, frame.x(step), frame.y(values[place]), !frame.holds(values[place]))))));
  return picture;
}

/** The range of slopes worth a look: without what rounding or a far step throws away. */
function hull(direction) {
  const kept = [direction.backward, direction.forward, central(direction)]
    .flatMap((values) => values.filter((value, place) => isNumber(value) && direction.steps[place] >= direction.plateau[0]));
  const sizes = kept.map(Math.abs).sort((a, b) => a - b);
  const middle = sizes.length ? (sizes[Math.floor((sizes.length - 1) / 2)] + sizes[Math.ceil((sizes.length - 1) / 2)]) / 2 : 0;
  const inside = [...kept.filter((value) => Math.abs(value) <= 3 * middle), 0.9 * direction.slope, 1.1 * direction.slope, direction.gradient ?? 0];
  const [low, high] = [Math.min(...inside), Math.max(...inside)];
  const spare = 0.06 * (high - low) || 0.5;
  return [low - spare, high + spare];
}

/** The multiples of 1, 2 or 5 times a power of ten inside a range, up to about `most`. */
function ticks(low, high, most) {
  const rough = (high - low) / most;
  const size = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((digit) => digit * size).find((candidate) => candidate >= rough);
  const values = [];
  for (let count = Math.ceil(low / step); count <= high / step; count += 1) values.push(count * step);
  return values;
}

/** What both pictures have below their points: regions in words, axes, the linear range. */
function ground(direction, frame, heights, size, title, name, taken) {
  const picture = svg('svg', {
    viewBox: `0 0 ${frame.width} ${HEIGHT}`, class: 'picture', tabindex: 0, role: 'slider',
    'aria-label': `${name} along ${direction.name}: left and right go to shorter and longer steps, up and down to other directions`,
    'aria-valuemin': 1, 'aria-valuemax': direction.steps.length, 'aria-valuenow': 1,
  });
  const middle = (LEFT + frame.right) / 2;
  if (!direction.steps.length) {
    picture.append(label(middle, HEIGHT / 2, 'every step was rounded away', 'middle', 'title'));
    return picture;
  }
  picture.append(...regions(direction, frame));
  for (const [height, text] of heights) picture.append(line(LEFT, frame.y(height), frame.right, frame.y(height), 'grid'), label(LEFT - 7, frame.y(height) + 4, text, 'end'));
  const every = Math.ceil(44 * (frame.last - frame.first) / (frame.right - LEFT));
  for (let decade = Math.ceil(frame.first); decade <= frame.last; decade += 1) {
    if (decade % every) continue;
    const x = frame.x(10 ** decade);
    picture.append(line(x, TOP, x, frame.bottom, 'grid'), label(x, frame.bottom + 17, power(decade), 'middle'));
  }
  picture.append(
    line(LEFT, frame.bottom, frame.right, frame.bottom, 'axis'), label(middle, HEIGHT - 7, `step, in units of s = ${unit(size)}`, 'middle', 'title'),
    svg('text', { class: 'title', 'text-anchor': 'middle', transform: `translate(11 ${(TOP + frame.bottom) / 2}) rotate(-90)`, text: title }),
  );
  if (direction.linear) {
    const x = frame.x(direction.linear);
    const least = direction.linear >= 0.99 * Math.max(...direction.steps) ? 'at least ' : '';
    const words = `linear ${least}to ${short(direction.linear)} s`;
    const [anchor, aside] = x > middle ? ['end', -6] : ['start', 6];
    const ends = [x + aside, x + aside + Math.sign(aside) * 6.5 * words.length].sort((a, b) => a - b);
    picture.append(line(x, TOP, x, frame.bottom, 'linear'), label(x + aside, clear(frame, ends, taken), words, anchor, 'named'));
  }
  return picture;
}

/** The height at which a word between two ends is farthest from every point. */
function clear(frame, ends, taken) {
  const near = taken.filter(([x]) => x >= ends[0] - 5 && x <= ends[1] + 5).map(([, y]) => y);
  const room = (place) => (near.length ? Math.min(...near.map((y) => Math.abs(place - 4 - y))) : 0);
  return [frame.floor - 7, (TOP + frame.floor) / 2, TOP + 16].reduce((best, place) => (room(place) > room(best) ? place : best));
}

function regions(direction, frame) {
  const [low, high] = [frame.x(direction.plateau[0] / HALF), frame.x(direction.plateau[1] * HALF)];
  const block = (name, from, to) => svg('rect', { class: `region ${name}`, x: from, y: TOP, width: to - from, height: frame.bottom - TOP });
  const [y, half] = [TOP - 9, 22];
  const middle = Math.min(frame.right - half, Math.max(LEFT + half, (low + high) / 2));
  const parts = [block('plateau', low, high), label(middle, y, 'plateau', 'middle', 'named')];
  const side = (name, start, end, edge, anchor, room) => {
    if (end - start < 9) return;
    const turned = svg('text', { class: 'named', transform: `translate(${(start + end) / 2 + 4} ${frame.floor - 8}) rotate(-90)`, text: name });
    parts.push(block(name, start, end), room > 64 ? label(edge, y, name, anchor, 'named') : turned);
  };
  side('rounding', LEFT, low, LEFT, 'start', middle - half - LEFT);
  side('truncation', high, frame.right, frame.right, 'end', frame.right - middle - half);
  return parts;
}

/** A line through the points that have a height; it breaks where one has none. */
function path(name, frame, steps, heights) {
  let pen = 'M';
  const d = heights.map((height, place) => {
    const part = isNumber(height) ? `${pen}${frame.x(steps[place]).toFixed(1)} ${frame.y(height).toFixed(1)}` : '';
    pen = part ? 'L' : 'M';
    return part;
  });
  return svg('path', { class: `line ${name}`, d: d.join('') });
}

const group = (place, marks) => svg('g', { 'data-step': place }, ...marks);

/** One mark; a hollow one does not lie where its number is. */
function mark(name, x, y, hollow) {
  const common = { class: `mark ${name}${hollow ? ' hollow' : ''}` };
  if (SHAPES[name]) return svg('path', { ...common, d: SHAPES[name], transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})` });
  return svg('circle', { ...common, cx: x.toFixed(1), cy: y.toFixed(1), r: name === 'central' ? 2.2 : 5 });
}

function region(direction, place) {
  const step = direction.steps[place];
  if (step > direction.plateau[1]) return 'truncation';
  return step >= direction.plateau[0] ? 'plateau' : 'rounding';
}
