// Neurons and features have no grid: one strip a layer or site, each of them a dot at its value.

const dotIn = (component) => component.base.lastIndexOf('.');
const rowOf = (component) => (component.kind === 'neuron' ? component.layer : component.base.slice(0, dotIn(component)));

/** Every strip there is something for. */
function drawStrips() {
  const [neurons, features] = [true, false].map((are) => components.filter((c) => inStrip(c) && (c.kind === 'neuron') === are));
  return [
    ['Neurons by layer', 'neurons', neurons],
    ['Features by site', 'features and errors (ringed: what features leave out)', features],
  ].filter(([, , members]) => members.length).map((strip) => drawStrip(...strip));
}

function drawStrip(title, what, members) {
  const plot = html('div', { class: 'plot' });
  const caption = html('figcaption');
  const draw = () => {
    const drawn = members.filter((c) => isNumber(c[choice.value]));
    plot.replaceChildren(stripSvg(title, drawn, Math.max(280, plot.clientWidth)));
    const rest = members.length - drawn.length;
    caption.textContent = `${thousands(drawn.length)} ${what}: ${shownWord()}, in ${metricName}. The strongest of each side are named.`
      + (rest ? ` ${thousands(rest)} ${choice.value === 'score' ? 'have no finite score' : 'were not checked'}.` : '');
  };
  redraw(plot, draw);
  on('value', draw);
  return html('figure', { class: 'strip' }, html('h2', { text: title }), plot, caption);
}

function stripSvg(title, drawn, width) {
  const rows = distinct(drawn.map(rowOf));
  const row = Math.max(16, Math.min(40, 480 / rows.length));
  const left = 16 + 7 * Math.max(...rows.map((name) => `${name}`.length)), right = 48, height = row * rows.length + 34;
  // Neurons are small beside heads: a strip has its own scale.
  const [low, high] = ends(drawn.map((c) => c[choice.value]));
  const reach = scaled(high) - scaled(low) || 1;
  const x = (value) => left + (width - left - right) * (scaled(value) - scaled(low)) / reach;
  const picture = pointPicture(width, height, title);
  for (const value of ticks(low, high, x, 52)) {
    picture.append(line(x(value), 4, x(value), height - 26, value ? 'grid' : 'axis'), label(x(value), height - 10, tickText(value), 'middle'));
  }
  const marks = rows.flatMap((name, place) => {
    const middle = 4 + row * (place + 0.5);
    picture.append(label(left - 8, middle + 4, name, 'end'));
    return stripRow(picture, drawn.filter((c) => rowOf(c) === name), x, middle, row, Math.max(high, -low) / 8);
  });
  points(picture, marks, betweenRows(marks));
  return picture;
}

/** Dots of one row, pushed apart where they would cover each other. */
function stripRow(picture, members, x, middle, row, worthNaming) {
  const sorted = [...members].sort((a, b) => a[choice.value] - b[choice.value]);
  const filled = new Map();
  const marks = sorted.map((component) => {
    const value = component[choice.value];
    const column = Math.round(x(value) / 4);
    const nth = filled.get(column) ?? 0;
    filled.set(column, nth + 1);
    const step = Math.min(3.2, (row / 2 - 3) / 4);
    const y = middle + ((nth % 2 ? 1 : -1) * Math.ceil(nth / 2) * step) % (row / 2 - 2);
    const dot = svg('circle', { r: 2.6, cx: x(value).toFixed(1), cy: y.toFixed(1), class: `dot ${component.kind}${value < 0 ? ' negative' : ''}` });
    return { component, x: x(value), y, node: dot };
  });
  for (const mark of marks) picture.append(mark.node);
  if (row >= 24 && marks.length > 1) {
    for (const [mark, side] of [[marks[0], -1], [marks.at(-1), 1]]) {
      if (side * mark.component[choice.value] < worthNaming) continue;
      const room = side < 0 ? mark.x > 86 : mark.x < picture.viewBox.baseVal.width - 44;
      const turned = room ? side : -side;
      picture.append(label(mark.x + 6 * turned, mark.y + 4, mark.component.base.slice(dotIn(mark.component) + 1), turned < 0 ? 'end' : 'start', 'named'));
    }
  }
  return marks;
}

/** Arrows across follow the values of a row, arrows up and down go to the next row's nearest. */
function betweenRows(marks) {
  const own = marks.map((mark) => rowOf(mark.component));
  const rows = distinct(own);
  return (place, across, down) => {
    if (across) return Math.max(0, Math.min(marks.length - 1, place + across));
    const row = rows[rows.indexOf(own[place]) + down];
    const far = (other) => Math.abs(marks[other].x - marks[place].x);
    const there = marks.map((_, other) => other).filter((other) => own[other] === row);
    return there.reduce((best, other) => (far(other) < far(best) ? other : best), there[0] ?? place);
  };
}
