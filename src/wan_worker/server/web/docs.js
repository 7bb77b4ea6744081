// The API reference, from the server's own OpenAPI document and the request's schema.

import { byId, el } from "./dom.js";
import { get } from "./server.js";

const METHODS = ["get", "post", "put", "patch", "delete"];

const table = (name, head, rows) => el("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": name },
  el("table", {}, el("thead", {}, el("tr", {}, ...head.map((one) => el("th", { scope: "col" }, one)))),
    el("tbody", {}, ...rows.map(([first, ...rest]) => el("tr", {}, el("th", { scope: "row" }, el("code", {}, first)), ...rest.map((cell) => el("td", {}, cell)))))));

/** A type as JSON Schema says it, in a few words. */
function typeOf(rule = {}) {
  if (rule.enum) return rule.enum.join(", ");
  if (rule.anyOf) return rule.anyOf.map(typeOf).filter((one) => one !== "null").join(" or ");
  const limits = [rule.minimum !== undefined && `from ${rule.minimum}`, rule.maximum !== undefined && `to ${rule.maximum}`].filter(Boolean).join(" ");
  return [[rule.type].flat().filter(Boolean).join(" or "), limits].filter(Boolean).join(", ");
}

function operation(path, method, its) {
  const parameters = (its.parameters ?? []).map((one) => [one.name, one.in, typeOf(one.schema), one.schema?.default ?? (one.required ? "must be given" : ""), one.description ?? ""].map(String));
  return el("li", { className: "card route" },
    el("h4", {}, el("span", { className: `chip ${method}` }, method.toUpperCase()), " ", el("code", {}, path)),
    el("p", {}, its.description ?? its.summary ?? ""),
    parameters.length > 0 && table(`Parameters of ${method} ${path}`, ["Parameter", "In", "Type", "Default", "Meaning"], parameters));
}

function routes({ paths }) {
  const byTag = new Map();
  for (const [path, operations] of Object.entries(paths)) {
    for (const method of METHODS.filter((one) => operations[one])) {
      const tag = operations[method].tags?.[0] ?? "other";
      byTag.set(tag, [...(byTag.get(tag) ?? []), operation(path, method, operations[method])]);
    }
  }
  return [...byTag].flatMap(([tag, items]) => [el("h3", {}, tag), el("ul", { className: "route-list" }, ...items)]);
}

function fields({ request }) {
  const all = Object.entries(request.properties);
  const aliases = Object.groupBy(all.filter(([, rule]) => rule["x-alias-of"]), ([, rule]) => rule["x-alias-of"]);
  const rows = all.filter(([, rule]) => !rule["x-alias-of"]).map(([name, rule]) => {
    const others = (aliases[name] ?? []).map(([other]) => other).join(", ");
    return [name, typeOf(rule), String(rule.default ?? ""), [rule.description, others && `Also: ${others}.`].filter(Boolean).join(" ")];
  });
  return table("Fields of a request", ["Field", "Type", "Default", "Meaning"], rows);
}

byId("routes").append(...routes(await get("/openapi.json")));
byId("request").append(fields(await get("/api/v1/schema")));
