// Neurons have no grid: one strip a layer, each neuron a dot at its value.

function drawStrip() {
  const neurons = components.filter((c) => c.kind === 'neuron');
  if (!neurons.length) return null;
  const plot = html('div', { class: 'plot' });
  const caption = html('figcaption');
  const figure = html('figure', { class: 'strip' }, html('h2', { text: 'Neurons by layer' }), plot, caption);
  const draw = () => {
    const drawn = neurons.filter((c) => isNumber(c[choice.value]));
    plot.replaceChildren(stripSvg(drawn, Math.max(280, plot.clientWidth)));
    const rest = neurons.length - drawn.length;
    caption.textContent = `${thousands(drawn.length)} neurons: ${shownWord()}, in ${metricName}. The strongest of each side are named.`
      + (rest ? ` ${thousands(rest)} ${choice.value === 'score' ? 'have no finite score' : 'were not checked'}.` : '');
  };
  redraw(plot, draw);
  on('value', draw);
  return figure;
}

function stripSvg(neurons, width) {
  const layers = distinct(neurons.map((c) => c.layer)).sort(ascending);
  const row = Math.max(16, Math.min(40, 480 / layers.length));
  const left = 40, right = 48, height = row * layers.length + 34;
  // Neurons are small beside heads: the strip has its own scale.
  const [low, high] = ends(neurons.map((c) => c[choice.value]));
  const reach = scaled(high) - scaled(low) || 1;
  const x = (value) => left + (width - left - right) * (scaled(value) - scaled(low)) / reach;
  const picture = pointPicture(width, height, 'Neurons by layer');
  for (const value of ticks(low, high, x, 52)) {
    picture.append(line(x(value), 4, x(value), height - 26, value ? 'grid' : 'axis'), label(x(value), height - 10, tickText(value), 'middle'));
  }
  const marks = layers.flatMap((layer, place) => {
    const middle = 4 + row * (place + 0.5);
    picture.append(label(left - 8, middle + 4, String(layer), 'end'));
    return stripRow(picture, neurons.filter((c) => c.layer === layer), x, middle, row, Math.max(high, -low) / 8);
  });
  points(picture, marks, betweenLayers(marks));
  return picture;
}

/** Dots of one layer, pushed apart where they would cover each other. */
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
    const dot = svg('circle', { r: 2.6, cx: x(value).toFixed(1), cy: y.toFixed(1), class: value < 0 ? 'dot negative' : 'dot' });
    return { component, x: x(value), y, node: dot };
  });
  for (const mark of marks) picture.append(mark.node);
  if (row >= 24 && marks.length > 1) {
    for (const [mark, side] of [[marks[0], -1], [marks.at(-1), 1]]) {
      if (side * mark.component[choice.value] < worthNaming) continue;
      const room = side < 0 ? mark.x > 86 : mark.x < picture.viewBox.baseVal.width - 44;
      const turned = room ? side : -side;
      picture.append(label(mark.x + 6 * turned, mark.y + 4, `n${mark.component.index ?? ''}`, turned < 0 ? 'end' : 'start', 'named'));
    }
  }
  return marks;
}

/** Arrows across follow the values of a layer, arrows up and down go to the next layer's nearest. */
function betweenLayers(marks) {
  const layers = distinct(marks.map((mark) => mark.component.layer));
  return (place, across, down) => {
    if (across) return Math.max(0, Math.min(marks.length - 1, place + across));
    const { component, x } = marks[place];
    const layer = layers[layers.indexOf(component.layer) + down];
    const there = marks.map((_, other) => other).filter((other) => marks[other].component.layer === layer);
    return there.reduce((best, other) => (Math.abs(marks[other].x - x) < Math.abs(marks[best].x - x) ? other : best), there[0] ?? place);
  };
}
