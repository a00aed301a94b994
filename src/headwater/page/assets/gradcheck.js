// What the reader has chosen: a site, a direction, a step. The pictures, tables and hover follow.

document.documentElement.classList.add('scripts');
const state = { site: 0, direction: data.sites[0].first, step: 0 };
const site = () => data.sites[state.site];
const direction = () => site().directions[state.direction];
const panels = [...document.querySelectorAll('.site')];
const plots = [['errors', drawErrors], ['slopes', drawSlopes]].map(([id, draw]) => ({ box: document.querySelector(`#${id} .plot`), draw, width: 0 }));
const rows = () => panels[state.site].querySelector('.directions tbody').rows;

function chooseSite(_, number) {
  state.site = Number(number);
  state.direction = site().first;
  panels.forEach((panel, place) => { panel.hidden = place !== state.site; });
  show();
  intoView(rows()[state.direction]);
}

function chooseDirection(place) {
  state.direction = Math.max(0, Math.min(site().directions.length - 1, place));
  show();
  intoView(rows()[state.direction]);
}

/** Scroll a row into its own box, never the page. */
function intoView(row) {
  const box = row.closest('.tall');
  const [top, bottom] = [row.offsetTop - box.querySelector('thead').offsetHeight, row.offsetTop + row.offsetHeight];
  if (top < box.scrollTop) box.scrollTop = top;
  else if (bottom > box.scrollTop + box.clientHeight) box.scrollTop = bottom - box.clientHeight;
}

function show() {
  const chosen = direction();
  document.getElementById('along').replaceChildren(html('code', { text: site().name }), ' along ', html('code', { text: chosen.name }), ': ', html('span', { class: `verdict ${chosen.standing}`, text: chosen.verdict }));
  document.getElementById('readings').replaceChildren(...data.readings.map((term, place) => html('div', {}, html('dt', { text: term }), html('dd', { text: chosen.readings[place] }))));
  [...rows()].forEach((row, place) => {
    const current = place === state.direction;
    if (current) row.setAttribute('aria-current', 'true');
    else row.removeAttribute('aria-current');
    row.querySelector('button').tabIndex = current ? 0 : -1;
  });
  state.step = Math.max(0, chosen.steps.findIndex((_, place) => region(chosen, place) === 'plateau'));
  drawPlots();
  drawSteps();
}

function drawPlots() {
  hideTip();
  const focused = plots.findIndex(({ box }) => box.contains(document.activeElement));
  for (const plot of plots) {
    const picture = plot.draw(direction(), site(), Math.max(280, plot.box.clientWidth));
    plot.box.replaceChildren(picture);
    listen(picture);
  }
  if (focused >= 0) plots[focused].box.firstChild.focus({ preventScroll: true });
}

/** The nearest step answers the pointer; left and right walk along the steps, in both pictures. */
function listen(picture) {
  if (!direction().steps.length) return;
  const nearest = (event) => {
    const box = picture.getBoundingClientRect();
    const x = (event.clientX - box.left) * picture.viewBox.baseVal.width / box.width;
    const groups = [...picture.querySelectorAll('[data-step]')];
    const distance = (group) => Math.abs(across(group) - x);
    return groups.indexOf(groups.reduce((best, group) => (distance(group) < distance(best) ? group : best)));
  };
  picture.addEventListener('pointermove', (event) => enter(nearest(event), picture));
  picture.addEventListener('pointerdown', (event) => enter(nearest(event), picture));
  picture.addEventListener('pointerleave', leave);
  picture.addEventListener('focus', () => picture.matches(':focus-visible') && enter(state.step, picture));
  picture.addEventListener('blur', leave);
  picture.addEventListener('keydown', (event) => {
    const last = direction().steps.length - 1;
    if (event.key === 'Home') enter(last, picture);
    else if (event.key === 'End') enter(0, picture);
    else if (ARROWS[event.key]) {
      const [right, down] = ARROWS[event.key];
      if (down) chooseDirection(state.direction + down);
      else enter(Math.max(0, Math.min(last, state.step - right)), picture);
    } else return;
    event.preventDefault();
  });
}

const across = (group) => Number(group.querySelector('circle').getAttribute('cx'));

function enter(place, picture) {
  state.step = place;
  leave();
  for (const { box } of plots) {
    const group = box.querySelector(`[data-step="${place}"]`);
    const x = across(group);
    group.before(line(x, TOP, x, HEIGHT - BOTTOM, 'cursor'));
    group.classList.add('at');
    dress(box.firstChild, { 'aria-valuenow': direction().steps.length - place, 'aria-valuetext': spoken(place) }, []);
  }
  placeTip(picture.querySelector('.at').getBoundingClientRect(), [html('b', { text: title(place) })], describe(place));
}

function leave() {
  hideTip();
  document.querySelectorAll('.cursor').forEach((node) => node.remove());
  document.querySelectorAll('.at').forEach((node) => node.classList.remove('at'));
}

const title = (place) => `step ${short(direction().steps[place])} s`;
const slopeText = (value) => (isNumber(value) ? neat(value) : 'n/a');

function offText(value) {
  if (value === 0) return 'exactly 0, drawn at the bottom edge';
  const share = Math.abs(value / direction().slope);
  return isNumber(value) ? `${short(Math.abs(value))}${Number.isFinite(share) ? ` (${short(share)} of the slope)` : ''}` : 'n/a';
}

/** What is known of a step, as pairs of term and value. */
function describe(place) {
  const { steps, backward, forward, off_gradient: offGradient, off_slope: offSlope, error } = direction();
  return [
    ['step', short(steps[place] * site().size)], ['region', region(direction(), place)],
    ['backward', slopeText(backward[place])], ['forward', slopeText(forward[place])], ['central', slopeText(central(direction())[place])],
    ['off the gradient', offText(offGradient[place])], ['off the best slope', offText(offSlope[place])], ['modeled error', short(error[place])],
  ];
}

const spoken = (place) => `${title(place)}, ${describe(place).slice(1).map((pair) => pair.join(' ')).join(', ')}`;

/** The table of steps, in the columns that the page was written with. */
function drawSteps() {
  const chosen = direction();
  document.getElementById('steps-title').textContent = `steps along ${chosen.name}; s = ${unit(site().size)}, the value\u2019s root mean square`;
  const middle = central(chosen);
  document.querySelector('#steps tbody').replaceChildren(...chosen.steps.map((step, place) => html('tr', {},
    html('th', { scope: 'row', text: `${short(step)} s` }),
    ...[chosen.backward[place], chosen.forward[place], middle[place]].map((value) => html('td', { text: slopeText(value) })),
    ...[chosen.off_slope[place], chosen.off_gradient[place]].map((value) => html('td', { text: value === 0 ? '0' : short(Math.abs(value)) })),
    html('td', { text: region(chosen, place) }))));
}

/** Make the rows of the directions' tables choosable by mouse and keyboard: one tab stop a table. */
function startTables() {
  document.querySelectorAll('.directions tbody').forEach((body) => {
    for (const row of body.rows) {
      const name = row.cells[0];
      name.replaceChildren(html('button', { type: 'button', class: 'name', text: name.textContent }));
    }
    body.addEventListener('click', (event) => {
      const row = event.target.closest('tr');
      if (event.target.closest('button') || getSelection().isCollapsed) {
        chooseDirection(row.sectionRowIndex);
        row.querySelector('button').focus({ preventScroll: true });
      }
    });
    body.addEventListener('keydown', (event) => {
      const last = body.rows.length - 1;
      const to = { ArrowUp: state.direction - 1, ArrowDown: state.direction + 1, Home: 0, End: last }[event.key];
      if (to === undefined) return;
      chooseDirection(to);
      rows()[state.direction].querySelector('button').focus({ preventScroll: true });
      event.preventDefault();
    });
  });
}

startTables();
if (data.sites.length > 1) document.getElementById('toolbar').append(radios('site', 'Site', data.sites.map(({ name }, place) => [place, name]), chooseSite));
chooseSite('site', 0);
for (const plot of plots) {
  new ResizeObserver(() => {
    if (Math.abs(plot.box.clientWidth - plot.width) < 1) return;
    plot.width = plot.box.clientWidth;
    drawPlots();
  }).observe(plot.box);
}
addEventListener('scroll', hideTip, { passive: true });
document.addEventListener('keydown', (event) => event.key === 'Escape' && leave());
