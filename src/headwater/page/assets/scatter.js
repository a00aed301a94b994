// Estimate against exact: where they agree, points lie on the diagonal.

const SHAPES = {
  top: 'M0 -5A5 5 0 1 1 0 5A5 5 0 1 1 0 -5Z',
  middle: 'M0 -6L6 0L0 6L-6 0Z',
  tail: 'M0 -6L5.6 4.4L-5.6 4.4Z',
};
const shape = (component) => SHAPES[component.stratum] ?? SHAPES.top;
const curves = new Map([...document.querySelectorAll('[data-curve]')].map((figure) => [figure.dataset.curve, figure]));
const hasCurve = (component) => curves.has(component.name);

function startScatter() {
  const figure = document.getElementById('scatter');
  const plot = figure.querySelector('.plot');
  const drawn = components.filter((c) => isNumber(c.score) && isNumber(c.exact));
  if (!drawn.length) return plot.replaceWith(notAudited());
  const slope = (data.statistics ?? []).find((row) => row.name.toLowerCase() === 'slope')?.value;
  redraw(plot, () => plot.replaceChildren(scatterSvg(drawn, slope, Math.max(260, Math.min(560, plot.clientWidth)))));
  figure.querySelector('figcaption').replaceChildren(...key(drawn, slope));
  return figure;
}

/** What stands in the scatter's place until there is something to compare. */
function notAudited() {
  const [lead, rest] = isExactRun
    ? ['Nothing to compare.', ['These scores are exact effects, not estimates.']]
    : audited
      ? ['Nothing to draw.', ['No checked component has both a finite estimate and a finite exact effect.']]
      : ['Not audited yet.', ['How far these estimates are from the truth is not known. To check a sample of them exactly: ',
        html('code', { text: 'headwater audit RUN' }), ', or in Python ', html('code', { text: 'scores.audit(sample=32)' }), '.']];
  return html('div', { class: 'absent' }, html('b', { text: lead }), html('p', {}, ...rest));
}

function scatterSvg(drawn, slope, width) {
  const [left, right, top, bottom] = [58, 12, 8, 42];
  const height = Math.round(Math.min(width, 500) - left - right + top + bottom);
  const [least, most] = ends(drawn.flatMap((c) => [scaled(c.score), scaled(c.exact)]));
  const pad = (most - least || 1) * 0.06;
  const share = (value) => (scaled(value) - least + pad) / (most - least + 2 * pad);
  const x = (value) => left + share(value) * (width - left - right);
  const y = (value) => height - bottom - share(value) * (height - top - bottom);
  const picture = pointPicture(width, height, 'Estimate against exact');
  const unscaled = (value) => (choice.scale === 'root' ? Math.sign(value) * value * value : value);
  const [low, high] = [unscaled(least - pad), unscaled(most + pad)];
  for (const value of ticks(low, high, x, 48)) {
    picture.append(line(x(value), top, x(value), height - bottom, value ? 'grid' : 'axis'), label(x(value), height - bottom + 16, tickText(value), 'middle'));
  }
  for (const value of ticks(low, high, y, 36)) {
    picture.append(line(left, y(value), width - right, y(value), value ? 'grid' : 'axis'), label(left - 7, y(value) + 4, tickText(value), 'end'));
  }
  picture.append(
    label((left + width - right) / 2, height - 6, `exact effect, in ${metricName}`, 'middle', 'title'),
    svg('text', { transform: `translate(12 ${(top + height - bottom) / 2}) rotate(-90)`, 'text-anchor': 'middle', class: 'title', text: `${scoreWord}, in ${metricName}` }),
    ...diagonals(x, y, low, high, slope, [left, top, width - right, height - bottom]),
  );
  const marks = drawn.map((component) => {
    const [across, down] = [x(component.exact), y(component.score)];
    return { component, x: across, y: down, node: svg('path', { d: shape(component), transform: `translate(${across.toFixed(1)} ${down.toFixed(1)})`, class: `point kind-${component.kind}${hasCurve(component) ? ' curved' : ''}` }) };
  });
  // Strong ones last, so that they lie on top; the worst are named where there is room.
  marks.sort((a, b) => b.component.rank - a.component.rank);
  picture.append(...marks.map((mark) => mark.node));
  nameWorst(picture, marks, width);
  points(picture, marks, inOrderOfAxes(marks));
  return picture;
}

/** The line of perfect agreement, and the audit's slope. Both stay straight on the root scale. */
function diagonals(x, y, low, high, slope, [left, top, right, bottom]) {
  const clip = svg('clipPath', { id: 'inside' }, svg('rect', { x: left, y: top, width: right - left, height: bottom - top }));
  const through = (factor, name) => svg('polyline', {
    points: [low, 0, high].map((value) => `${x(value).toFixed(1)},${y(factor * value).toFixed(1)}`).join(' '), class: name, 'clip-path': 'url(#inside)',
  });
  return [clip, through(1, 'identity'), ...(isNumber(slope) ? [through(slope, 'slope')] : [])];
}

function nameWorst(picture, marks, width) {
  const taken = marks.map(({ x, y }) => [x - 5, y - 5, x + 5, y + 5]);
  const error = (mark) => Math.abs(mark.component.error);
  for (const mark of [...marks].sort((a, b) => error(b) - error(a)).slice(0, 5)) {
    const wide = mark.component.name.length * 6.6;
    for (const [across, down] of [[9, 4], [-9 - wide, 4], [-wide / 2, -10], [-wide / 2, 18]]) {
      const box = [mark.x + across, mark.y + down - 10, mark.x + across + wide, mark.y + down + 2];
      const clear = taken.every((other) => box[0] > other[2] || box[2] < other[0] || box[1] > other[3] || box[3] < other[1]);
      if (!clear || box[0] < 60 || box[2] > width - 8 || box[1] < 8) continue;
      picture.append(label(box[0], mark.y + down, mark.component.name, 'start', 'named'));
      taken.push(box);
      break;
    }
  }
}

/** What colors, shapes and lines mean; only those that occur. */
function key(drawn, slope) {
  const sample = (name, path) => {
    const icon = svg('svg', { viewBox: '-8 -8 16 16', class: 'sample', 'aria-hidden': 'true' });
    icon.append(typeof path === 'string' ? svg('path', { d: path, class: name }) : line(-8, path.tilt, 8, -path.tilt, name));
    return icon;
  };
  const item = (icon, text) => html('span', { class: 'item' }, icon, text);
  const kinds = distinct(drawn.map((c) => c.kind)).sort(byKind);
  const strata = Object.keys(SHAPES).filter((stratum) => drawn.some((c) => c.stratum === stratum));
  const items = kinds.map((kind) => item(sample(`point kind-${kind}`, SHAPES.top), plural(kind)));
  if (strata.length) items.push(html('span', { class: 'item', text: 'drawn from:' }), ...strata.map((stratum) => item(sample('point', SHAPES[stratum]), stratum)));
  if (drawn.some(hasCurve)) items.push(item(sample('point curved', SHAPES.top), 'has a response curve'));
  items.push(item(sample('identity', { tilt: 6 }), 'equal'));
  if (isNumber(slope)) items.push(item(sample('slope', { tilt: 5 }), `slope ${digits(slope)}`));
  return [...items, html('span', { class: 'words', text: `${thousands(drawn.length)} of ${thousands(components.length)} shown components checked exactly. The largest errors are named.` })];
}
