// Response curves: drawn in the page already; the chosen component's is the one that shows.

/** Show the chosen component's curve, or the strongest one's; bring it into view when chosen. */
function startCurves() {
  let shown = curves.keys().next().value;
  const show = () => curves.forEach((figure, name) => { figure.hidden = name !== shown; });
  show();
  on('id', () => {
    const name = components[choice.id]?.name;
    if (!curves.has(name)) return;
    shown = name;
    show();
    curves.get(name).scrollIntoView({ block: 'nearest' });
  });
}
