// Numbers for people.

const BYTES = ["B", "kB", "MB", "GB", "TB"];

export function bytes(count) {
  const power = Math.min(BYTES.length - 1, count < 1 ? 0 : Math.floor(Math.log10(count) / 3));
  return `${rounded(count / 1000 ** power)} ${BYTES[power]}`;
}

export function seconds(value) {
  if (value < 1) return `${rounded(value * 1000)} ms`;
  if (value < 120) return `${rounded(value)} s`;
  return value < 7200 ? `${Math.round(value / 60)} min` : `${rounded(value / 3600)} h`;
}

export const percent = (part, whole) => `${whole ? Math.round((100 * part) / whole) : 0} %`;

/** Three digits that count. */
export function rounded(value) {
  if (value >= 100) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(value >= 10 ? 3 : 2)));
}
