// Pinned cells: how their positions' numbers and followed tokens go through the rows.

const LABELED = 8;
const WRITES = rows.some(({ kind }) => kind === 'write') ? ' Hollow: what one sublayer writes, read alone.' : '';
const pinBox = document.getElementById('pins');

function drawPins() {
  hideTip();
  if (!state.pins.length) {
    pinBox.replaceChildren(html('p', { class: 'absent', text: 'Click a cell, or press Enter on it, to see how its position goes through the layers. Up to four positions can be compared.' }));
    return;
  }
  const wide = pinBox.clientWidth;
  const width = wide > 776 ? Math.floor((wide - 40) / 2) : wide;
  pinBox.replaceChildren(html('h3', { text: 'Pinned positions' }), html('p', { class: 'chosen' }, ...state.pins.map(pinTag)),
    html('div', { class: 'trajectories' }, statisticFigure(width), ...state.pins.map((one) => followedFigure(one, width))));
}

/** A pin's name, which shows its cell, and a button that removes it. */
function pinTag({ row, position, color }) {
  const tag = html('span', { class: `pin series-${color}` });
  const go = html('button', { type: 'button', class: 'go' }, html('span', { class: 'sign', text: '\u25cf ' }), html('code', { text: rows[row].name }), ` at ${position} `, chip(prompt().tokens[position]));
  go.addEventListener('click', () => { change({ row, position }); intoView(); box.focus(); });
  const off = html('button', { type: 'button', class: 'off', 'aria-label': `unpin position ${position}`, text: '\u00d7' });
  off.addEventListener('click', () => { pin(row, position); box.focus(); });
  tag.append(go, off);
  return tag;
}

function statisticFigure(width) {
  const one = statistic();
  const series = state.pins.map(({ row, position, color }) => ({
    values: rows.map((_, at) => valueAt(at, position)), kind: `series-${color}`, marked: row,
    label: `${position} ${word(prompt().tokens[position])}`, told: numberText,
  }));
  return html('figure', {}, html('h4', { text: one.name }), chart({ title: `${one.name} over the layers at ${state.pins.length} pinned positions`, unit: one.unit, series, scale: one.scale, width }),
    html('figcaption', { text: `The large mark is the pinned cell.${WRITES}` }));
}

/** Probabilities of a position's followed tokens: those with a role first, then the most probable. */
function followedFigure({ row, position }, width) {
  const { followed, followed_cost: costs } = prompt();
  const lines = followed[position].map((token, at) => {
    const values = rows.map((_, number) => costs[number][position][at]);
    return { token, values, roles: roles(token, position), least: Math.min(...values.filter(isNumber)) };
  }).sort((a, b) => b.roles.length - a.roles.length || a.least - b.least);
  const series = lines.map(({ token, values, roles: names }, at) => ({
    values: values.map((cost) => (cost == null ? null : Math.max(1e-12, Math.exp(-cost / 1000)))),
    kind: at < LABELED ? `series-${at}` : 'series-gray', faint: at >= LABELED, marked: row,
    label: at < LABELED ? word(token) : null, role: names.length ? ` (${names.join(', ')})` : '',
    told: (value) => (isNumber(value) ? percent(-1000 * Math.log(value)) : '0 %'),
  }));
  const rest = lines.length - LABELED;
  const words = `Every token that is most probable at some layer, the input and the next.${rest > 0 ? ` Gray: the other ${rest}.` : ''}${WRITES}`;
  return html('figure', {}, html('h4', {}, `Position ${thousands(position)} reads `, chip(prompt().tokens[position]), ': probabilities'),
    chart({ title: `Probabilities of ${lines.length} tokens over the layers at position ${position}`, unit: 'probability', series: series.reverse(), scale: 'log', width, height: 300 }),
    html('figcaption', { text: words }));
}
