// What the drawn plots share: axes, lines, and points that mouse, touch and keyboard can reach.

/** Draw now and whenever the room or the scale changes; mark the chosen point when that changes. */
function redraw(plot, draw) {
  let width = 0;
  new ResizeObserver(() => {
    if (Math.abs(plot.clientWidth - width) < 1) return;
    width = plot.clientWidth;
    draw();
  }).observe(plot);
  on('scale', draw);
  on('id', () => plot.querySelector('svg')?.mark());
}

function pointPicture(width, height, title) {
  return svg('svg', {
    viewBox: `0 0 ${width} ${height}`, class: 'picture', role: 'listbox', tabindex: 0, 'aria-label': `${title}: arrow keys move between points, Enter chooses`,
  });
}

/** Round values between two ends, never closer than `gap` pixels where `to` puts them. */
function ticks(low, high, to, gap) {
  const accepted = [0];
  const reach = Math.max(Math.abs(low), Math.abs(high));
  const top = Math.floor(Math.log10(reach || 1));
  const candidates = [];
  if (choice.scale === 'root') {
    for (let power = top; power > top - 5; power -= 1) for (const digit of [5, 2, 1]) candidates.push(digit * 10 ** power);
  } else {
    const steps = [1, 2, 5, 10].map((digit) => digit * 10 ** (top - 1)).concat([20, 50, 100].map((digit) => digit * 10 ** (top - 1)));
    const step = steps.find((size) => Math.abs(to(size) - to(0)) >= gap) ?? reach;
    for (let count = 1; count * step <= reach; count += 1) candidates.push(count * step);
  }
  for (const value of candidates.flatMap((size) => [size, -size])) {
    if (value < low || value > high) continue;
    if (accepted.every((other) => Math.abs(to(other) - to(value)) >= gap)) accepted.push(value);
  }
  return accepted.sort(ascending);
}

function tickText(value) {
  const size = Math.abs(value);
  return trueMinus(size && (size < 1e-3 || size >= 1e5) ? value.toExponential(0) : String(Number(value.toPrecision(3))));
}

/** Let `marks` ({component, x, y, node}) be hovered, clicked and walked with arrows. */
// The picture is one tab stop. The nearest point answers the pointer, so small and crowded points
// stay reachable; `next(place, across, down)` names the point an arrow key leads to.
function points(picture, marks, next) {
  const prefix = `point-${pointCount += 1}-`;
  const chosenRing = svg('circle', { r: 8, class: 'ring', visibility: 'hidden' });
  const activeRing = svg('circle', { r: 8, class: 'ring active', visibility: 'hidden' });
  picture.append(chosenRing, activeRing);
  marks.forEach(({ component, node }) => dress(node, {
    id: prefix + component.id, role: 'option', 'data-id': component.id, 'data-name': component.name,
    'aria-label': spoken(component), 'aria-selected': 'false',
  }, []));
  const circle = (ring, mark) => dress(ring, mark ? { cx: mark.x, cy: mark.y, visibility: 'visible' } : { visibility: 'hidden' }, []);
  picture.mark = () => {
    marks.forEach(({ component, node }) => node.setAttribute('aria-selected', component.id === choice.id));
    circle(chosenRing, marks.find(({ component }) => component.id === choice.id));
  };
  picture.mark();
  let active = -1;
  const enter = (place) => {
    active = place;
    const mark = marks[place];
    if (!mark) return;
    picture.setAttribute('aria-activedescendant', mark.node.id);
    circle(activeRing, mark);
    showTip(mark.component, mark.node.getBoundingClientRect());
  };
  const leave = () => { hideTip(); circle(activeRing, null); };
  const nearest = (event) => {
    const box = picture.getBoundingClientRect();
    const zoom = box.width / picture.viewBox.baseVal.width;
    const [x, y] = [(event.clientX - box.left) / zoom, (event.clientY - box.top) / zoom];
    let best = -1, least = 18;
    marks.forEach((mark, place) => {
      const distance = Math.hypot(mark.x - x, mark.y - y);
      if (distance < least) [best, least] = [place, distance];
    });
    return best;
  };
  picture.addEventListener('pointermove', (event) => {
    const place = nearest(event);
    if (place < 0) leave();
    else enter(place);
  });
  picture.addEventListener('pointerleave', leave);
  picture.addEventListener('click', (event) => {
    const place = nearest(event);
    if (place >= 0) pick(marks[place].component.id);
  });
  picture.addEventListener('focus', () => picture.matches(':focus-visible') && enter(Math.max(0, active)));
  picture.addEventListener('blur', leave);
  picture.addEventListener('keydown', (event) => {
    if (event.key === 'Enter' || event.key === ' ') {
      if (marks[active]) pick(marks[active].component.id);
    } else if (ARROWS[event.key]) enter(next(Math.max(0, active), ...ARROWS[event.key]));
    else return;
    event.preventDefault();
  });
}

let pointCount = 0;

/** Arrows across follow the order of x, arrows up and down that of y, so every point is reached. */
function inOrderOfAxes(marks) {
  const orders = ['x', 'y'].map((axis) => marks.map((_, place) => place).sort((a, b) => marks[a][axis] - marks[b][axis]));
  return (place, across, down) => {
    const order = orders[across ? 0 : 1];
    return order[Math.max(0, Math.min(order.length - 1, order.indexOf(place) + across + down))];
  };
}
