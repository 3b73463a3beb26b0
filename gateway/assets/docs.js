// The page: drawn from openapi.json, grouped by service, searched while typing, one call open at its own address.

import { element, prose } from "./dom.js";
import { Schemas } from "./schema.js";
import { form } from "./tryit.js";

const main = document.getElementById("top");
const nav = document.getElementById("nav");

// One entry for each RPC, with all the paths that lead to it.
function calls(document_) {
  const found = new Map();
  for (const [path, item] of Object.entries(document_.paths)) {
    for (const [method, operation] of Object.entries(item)) {
      const rpc = operation["x-grpc-method"];
      if (!found.has(rpc)) found.set(rpc, { ways: [], operation });
      found.get(rpc).ways.push({ path, method, operation });
    }
  }
  for (const call of found.values()) {
    call.ways.sort((one, other) => one.operation.operationId.length - other.operation.operationId.length);
    call.operation = call.ways[0].operation;
  }
  return [...found.values()];
}

function pathParts(path) {
  return path.split(/(\{[^}]+\})/).map((part) => (part.startsWith("{") ? element("b", {}, part) : part));
}

function callBox({ ways, operation }, schemas) {
  const [{ path, method }] = ways;
  const title = element("span", { class: "title" }, operation.summary);
  if (operation["x-streaming"]) title.append(element("span", { class: "tag" }, "stream"));
  const summary = element(
    "summary",
    {},
    element("span", { class: `verb ${method}` }, method.toUpperCase()),
    element("span", { class: "path" }, ...pathParts(path)),
    title,
  );
  const box = element("details", { class: "call", id: operation.operationId }, summary);
  // Drawn when it is opened: a hundred forms at once would make a slow page.
  box.addEventListener("toggle", () => {
    if (!box.open) return;
    if (box.children.length === 1) box.append(element("div", { class: "body" }, about(ways, operation, schemas), tryBox(ways, schemas)));
    if (location.hash !== `#${box.id}`) history.replaceState(null, "", `#${box.id}`);
  });
  return box;
}

function tryBox(ways, schemas) {
  const draw = ({ path, method, operation }) => form(path, method, operation, schemas);
  const box = element("div", { class: "try" }, element("h3", {}, "Try it"));
  if (ways.length > 1) {
    const options = ways.map(({ path, method }, i) => element("option", { value: i }, `${method.toUpperCase()} ${path}`));
    const choose = () => box.lastChild.replaceWith(draw(ways[select.value]));
    const select = element("select", { "aria-label": "Path", onchange: choose }, ...options);
    box.append(select);
  }
  box.append(draw(ways[0]));
  return box;
}

function heading(text, type) {
  return element("h3", {}, text, type && element("code", {}, type));
}

function about(ways, operation, schemas) {
  const box = element("div", { class: "about" }, prose(operation.description));
  for (const { path, method } of ways.slice(1)) {
    const verb = element("span", { class: `verb ${method}` }, method.toUpperCase());
    box.append(element("p", { class: "facts path" }, "also ", verb, " ", element("span", { class: "mono" }, ...pathParts(path))));
  }
  box.append(element("p", { class: "facts" }, "gRPC: ", element("code", {}, operation["x-grpc-method"].slice(1))));
  const parameters = operation.parameters || [];
  if (parameters.length) {
    const rows = parameters.map((p) => schemas.field(p.name, p.schema, { required: p.required, description: p.description }));
    box.append(element("h3", {}, "Parameters"), element("ul", { class: "fields" }, ...rows));
  }
  if (operation.requestBody) {
    const [{ schema }] = Object.values(operation.requestBody.content);
    box.append(heading("Body", schema.$ref ? schemas.typeName(schema) : ""), schemas.fields(schema, { isWriting: true }));
  }
  const [type, { schema }] = Object.entries(operation.responses["200"].content).find(([name], i, all) => name === "text/event-stream" || all.length === 1);
  const answer = operation["x-streaming"] ? "Each message" : "Answer";
  box.append(heading(answer, schemas.inner(schema) ? schemas.typeName(schema) : type));
  box.append(schemas.inner(schema) ? schemas.fields(schema) : prose(operation.responses["200"].description));
  return box;
}

function draw(document_) {
  const schemas = new Schemas(document_.components.schemas);
  document.getElementById("version").textContent = document_.info.version;
  const link = (name, text = name) => element("a", { href: name }, text);
  const links = element("p", { class: "quiet" }, link("openapi.json"), " · ", link("healthz", "health"), " · ", link("metrics"));
  const intro = element("section", {}, element("h1", {}, `${document_.info.title} API`), prose(document_.info.description), links);
  main.replaceChildren(intro);
  const all = calls(document_);
  const entries = [];
  for (const tag of document_.tags) {
    const heading = element("h2", { id: tag.name }, tag.name);
    const section = element("section", { class: "service" }, heading, prose(tag.description));
    const list = element("ul");
    const title = element("h2", {}, element("a", { href: `#${tag.name}` }, tag.name));
    for (const call of all.filter(({ operation }) => operation.tags.includes(tag.name))) {
      const box = callBox(call, schemas);
      const [{ path, method }] = call.ways;
      const verb = element("span", { class: `verb ${method}` }, method.toUpperCase());
      const link = element("a", { href: `#${box.id}`, title: path }, verb, call.operation.summary);
      const item = element("li", {}, link);
      const paths = call.ways.map((way) => way.path).join(" ");
      const words = `${paths} ${box.id} ${call.operation.summary} ${call.operation.description}`.toLowerCase();
      entries.push({ words, box, item, link, section, title });
      section.append(box);
      list.append(item);
    }
    main.append(section);
    nav.append(title, list);
  }
  const nothing = element("p", { class: "quiet", hidden: true }, "Nothing is called that. Try a resource (models, jobs) or a verb (create, watch).");
  main.append(nothing);
  return { entries, nothing, intro };
}

function filter({ entries, nothing, intro }, text) {
  const terms = text.toLowerCase().split(/\s+/).filter(Boolean);
  intro.hidden = terms.length > 0;
  const sections = new Map();
  for (const { words, box, item, section, title } of entries) {
    const fits = terms.every((term) => words.includes(term));
    [box.hidden, item.hidden] = [!fits, !fits];
    sections.set(section, { title, fits: fits || sections.get(section)?.fits });
  }
  for (const [section, { title, fits }] of sections) [section.hidden, title.hidden] = [!fits, !fits];
  nothing.hidden = entries.some(({ box }) => !box.hidden);
}

function follow({ entries }) {
  const id = decodeURIComponent(location.hash.slice(1));
  for (const { box, link } of entries) {
    link.classList.toggle("here", box.id === id);
    if (box.id === id) link.scrollIntoView({ block: "nearest" });
  }
  const target = id && document.getElementById(id);
  if (!target) return;
  if (target.tagName === "DETAILS") target.open = true;
  requestAnimationFrame(() => target.scrollIntoView());
}

async function health() {
  const chip = document.getElementById("health");
  try {
    const { status, programs } = await (await fetch("healthz")).json();
    chip.textContent = status;
    chip.title = Object.entries(programs).map(([name, answer]) => `${name}: ${answer}`).join("\n");
    chip.className = `chip ${status === "ready" ? "good" : "bad"}`;
  } catch {
    [chip.textContent, chip.className] = ["no answer", "chip bad"];
  }
  if (!document.hidden) setTimeout(health, 10000);
  else document.addEventListener("visibilitychange", health, { once: true });
}

function theme() {
  const apply = (name) => (document.documentElement.dataset.theme = name);
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  apply(localStorage.getItem("theme") || system);
  document.getElementById("theme").addEventListener("click", () => {
    const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    apply(next);
    localStorage.setItem("theme", next);
  });
}

function keys(search) {
  document.addEventListener("keydown", (event) => {
    const typing = /INPUT|TEXTAREA|SELECT/.test(document.activeElement.tagName);
    if (event.key === "/" && !typing) {
      event.preventDefault();
      search.focus();
    }
    if (event.key === "Escape" && document.activeElement === search) {
      search.value = "";
      search.dispatchEvent(new Event("input"));
      search.blur();
    }
  });
}

async function start() {
  theme();
  health();
  const page = draw(await (await fetch("openapi.json")).json());
  const search = document.getElementById("search");
  search.addEventListener("input", () => filter(page, search.value));
  window.addEventListener("hashchange", () => follow(page));
  keys(search);
  follow(page);
}

start().catch((error) => main.replaceChildren(element("p", { class: "wrong" }, `The contract could not be read: ${error.message}`)));
