// Numbers for people.

const UNITS = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];

export function count(number) {
  const [size, unit] = UNITS.find(([least]) => number >= least) ?? [1, ""];
  return size === 1 ? String(Math.round(number)) : `${(number / size).toPrecision(3)} ${unit}`;
}

export function percent(share, digits = 1) {
  return share === null || share === undefined ? "–" : `${(100 * share).toFixed(digits)} %`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  return seconds < 90 ? `${Math.round(seconds)} s` : `${Math.round(seconds / 60)} min`;
}

export const date = (text) => new Date(text).toLocaleString();
