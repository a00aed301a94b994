// Edges as a few paths: those of one sign and about one size share a path, however many they are.

const BUCKETS = 8;

/** From the upper side of the source to the lower side of the target. */
function curve(from, to) {
  const lean = (mark, other) => mark.x + Math.max(-0.36 * mark.width, Math.min(0.36 * mark.width, 0.12 * (other.x - mark.x)));
  const [x1, x2] = [lean(from, to), lean(to, from)];
  const [y1, y2] = [from.y - from.height / 2, to.y + to.height / 2];
  const bend = Math.max(14, 0.45 * Math.abs(y1 - y2));
  const p = (value) => value.toFixed(1);
  return `M${p(x1)} ${p(y1)}C${p(x1)} ${p(y1 - bend)} ${p(x2)} ${p(y2 + bend)} ${p(x2)} ${p(y2)}`;
}

const strength = (edge) => size(edge.weight) / largestWeight;

/** The paths of some edges, weak ones first. */
function paths(some, marks) {
  const parts = new Map();
  for (const edge of some) {
    const [from, to] = [marks.get(edge.source.id), marks.get(edge.target.id)];
    if (!from || !to) continue;
    const bucket = Math.min(BUCKETS - 1, Math.floor(BUCKETS * Math.sqrt(strength(edge))));
    const key = `${bucket} ${edge.weight < 0 ? 'negative' : 'positive'}`;
    if (!parts.has(key)) parts.set(key, []);
    parts.get(key).push(curve(from, to));
  }
  return [...parts.entries()].sort(([a], [b]) => parseInt(a, 10) - parseInt(b, 10)).map(([key, curves]) => {
    const [bucket, sign] = key.split(' ');
    return svg('path', { d: curves.join(''), class: `edge ${sign}`, 'stroke-width': edgeWidth(Number(bucket)), 'data-edges': curves.length });
  });
}

/** Wide enough to see, and in proportion to the weight above that. */
const edgeWidth = (bucket) => (0.7 + 5.3 * ((bucket + 0.5) / BUCKETS) ** 2).toFixed(2);
