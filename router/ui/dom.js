// Elements, without a framework.

export const byId = (id) => document.getElementById(id);

/** A new element: `properties` are set on it, `children` are elements or text. */
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

export function showProblem(text) {
  const problem = byId("problem");
  problem.textContent = text;
  problem.hidden = !text;
}
