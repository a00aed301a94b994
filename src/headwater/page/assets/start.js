// Put the views into the page, once.

document.documentElement.classList.add('scripts');
startToolbar();
startChosen();
const maps = document.getElementById('maps');
const plan = planMaps();
maps.append(...plan.grids.map(drawMap));
if (components.some(inStrip)) maps.append(...drawStrips());
if (plan.outside > 0) maps.append(html('p', { class: 'caption', text: `${thousands(plan.outside)} components have no place in these figures; the table has them.` }));
maps.hidden = !maps.children.length;
startScatter();
if (curves.size) startCurves();
startTable();
startPrompts();
for (const button of document.querySelectorAll('[data-pick]')) {
  const found = components.find((component) => component.name === button.dataset.pick);
  button.disabled = !found;
  if (found) button.addEventListener('click', () => pick(found.id));
}
