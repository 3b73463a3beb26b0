// A form that sends the real request, shows the real answer, and says it in curl.

import { element, json } from "./dom.js";

const root = new URL(".", document.baseURI);

export function form(path, method, operation, schemas) {
  const inputs = (operation.parameters || []).map((parameter) => new Input(parameter, schemas));
  const body = operation.requestBody ? new Body(operation.requestBody, schemas) : null;
  const curl = element("pre", { tabindex: "0" });
  const answer = element("div", { "aria-live": "polite" });
  const send = element("button", { type: "submit" }, "Send");
  const stop = element("button", { type: "button", class: "ghost", hidden: true }, "Stop");
  const required = inputs.filter((input) => input.isRequired).map((input) => input.row());
  const optional = inputs.filter((input) => !input.isRequired).map((input) => input.row());
  const request = () => build(path, method, operation, inputs, body);
  const box = element(
    "form",
    {},
    ...required,
    optional.length > 0 &&
      (optional.length > 4 && required.length + Number(body !== null) > 0
        ? element("details", { class: "more" }, element("summary", {}, `${optional.length} optional parameters`), ...optional)
        : element("div", {}, ...optional)),
    body && body.box,
    element("div", { class: "actions" }, send, stop),
    element("details", { class: "more" }, element("summary", {}, "As a command"), curl),
    answer,
  );
  const refresh = () => (curl.textContent = asCurl(request()));
  box.addEventListener("input", refresh);
  box.addEventListener("submit", (event) => {
    event.preventDefault();
    refresh();
    run(request(), operation, answer, send, stop);
  });
  refresh();
  return box;
}

class Input {
  constructor(parameter, schemas) {
    this.parameter = parameter;
    this.isRequired = Boolean(parameter.required);
    const schema = schemas.resolve(parameter.schema);
    const item = schemas.resolve(schema.items || {});
    const values = schema.enum || (schema.type === "boolean" ? ["true", "false"] : null);
    this.isList = schema.type === "array";
    this.isMap = Boolean(schema.additionalProperties);
    const id = `p${crypto.getRandomValues(new Uint32Array(1))[0]}`;
    const hint = this.isList ? `${item.enum ? item.enum.slice(1).join(", ") : "several"}, with commas` : schema.examples?.[0] || "";
    this.control = values
      ? element("select", { id }, element("option", { value: "" }, "—"), ...values.map((v) => element("option", {}, v)))
      : element("input", { id, required: this.isRequired, placeholder: this.isMap ? "key=value, with commas" : hint, autocomplete: "off", spellcheck: "false" });
  }

  row() {
    const label = element("label", { for: this.control.id, title: this.parameter.description }, this.parameter.name);
    if (this.isRequired) label.append(element("i", {}, " *"));
    return element("div", { class: "row" }, label, this.control);
  }

  // Pairs of a name and a text; none while the control is empty.
  pairs() {
    const { name } = this.parameter;
    const text = this.control.value;
    if (!text) return [];
    if (!this.isList && !this.isMap) return [[name, text]];
    const parts = text.split(",").map((part) => part.trim()).filter(Boolean);
    if (this.isList) return parts.map((part) => [name, part]);
    return parts.map((part) => part.split("=")).map(([key, ...value]) => [`${name}[${key}]`, value.join("=")]);
  }
}

class Body {
  constructor(requestBody, schemas) {
    const [[type, { schema }]] = Object.entries(requestBody.content);
    this.type = type;
    this.area = element("textarea", { rows: 6, spellcheck: "false", "aria-label": "Request body" });
    this.wrong = element("p", { class: "wrong", hidden: true });
    const fill = (all) => {
      this.area.value = JSON.stringify(schemas.example(schema, { all }) ?? {}, null, 2);
      this.area.rows = Math.min(18, this.area.value.split("\n").length + 1);
      this.area.dispatchEvent(new Event("input", { bubbles: true }));
    };
    const isJson = type === "application/json";
    const buttons = isJson
      ? element(
          "div",
          { class: "actions" },
          element("button", { type: "button", class: "ghost", onclick: () => fill(false) }, "Required fields"),
          element("button", { type: "button", class: "ghost", onclick: () => fill(true) }, "All fields"),
        )
      : null;
    this.area.addEventListener("input", () => this.check(isJson));
    this.box = element("div", {}, element("h3", {}, "Body"), this.area, this.wrong, buttons);
    if (isJson) fill(false);
  }

  check(isJson) {
    let message = "";
    try {
      if (isJson && this.area.value.trim()) JSON.parse(this.area.value);
    } catch (error) {
      message = `Not JSON yet: ${error.message}`;
    }
    this.wrong.textContent = message;
    this.wrong.hidden = !message;
  }
}

function build(path, method, operation, inputs, body) {
  const query = new URLSearchParams();
  const headers = {};
  let filled = path;
  for (const input of inputs) {
    const { name, in: place } = input.parameter;
    if (place === "path") filled = filled.replace(`{${name}}`, encodeURIComponent(input.control.value).replaceAll("%40", "@").replaceAll("%3A", ":") || `{${name}}`);
    for (const [key, value] of place === "path" ? [] : input.pairs()) {
      if (place === "query") query.append(key, value);
      else headers[key] = value;
    }
  }
  if (operation["x-streaming"]) headers.Accept = "text/event-stream";
  const content = body?.area.value.trim() ? body.area.value : null;
  if (content) headers["Content-Type"] = body.type;
  const key = document.getElementById("key").value;
  if (key) headers.Authorization = `Bearer ${key}`;
  const search = query.toString() ? `?${query}` : "";
  return { url: new URL(filled.slice(1) + search, root), method: method.toUpperCase(), headers, body: content };
}

function asCurl({ url, method, headers, body }) {
  const quote = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
  const lines = [`curl ${method === "GET" ? "" : `-X ${method} `}${quote(decodeURI(url.href))}`];
  for (const [name, value] of Object.entries(headers)) {
    lines.push(`-H ${name === "Authorization" ? '"Authorization: Bearer $OCTAVO_API_KEY"' : quote(`${name}: ${value}`)}`);
  }
  if (body) lines.push(`-d ${quote(body)}`);
  if (headers.Accept) lines.push("--no-buffer");
  return lines.join(" \\\n  ");
}

async function run(request, operation, answer, send, stop) {
  const leaving = new AbortController();
  const started = performance.now();
  stop.onclick = () => leaving.abort();
  [send.disabled, stop.hidden] = [true, false];
  answer.replaceChildren(element("p", { class: "quiet" }, "Waiting for the answer…"));
  try {
    const response = await fetch(request.url, { ...request, signal: leaving.signal });
    answer.replaceChildren(status(response, performance.now() - started));
    if (response.ok && operation["x-streaming"]) await follow(response, answer);
    else answer.append(await shown(response));
  } catch (error) {
    const text = leaving.signal.aborted ? "Stopped." : `No answer: ${error.message}`;
    answer.append(element("p", { class: leaving.signal.aborted ? "quiet" : "wrong" }, text));
  } finally {
    [send.disabled, stop.hidden] = [false, true];
  }
}

function status(response, milliseconds) {
  return element(
    "div",
    { class: "status" },
    element("b", { class: response.ok ? "good" : "bad" }, `${response.status} ${response.statusText}`),
    element("span", {}, `${milliseconds.toFixed(0)} ms`),
    element("span", { class: "mono" }, response.headers.get("x-request-id") || ""),
  );
}

async function shown(response) {
  const type = response.headers.get("content-type") || "";
  if (!type.includes("json")) return element("pre", {}, (await response.text()).slice(0, 200000));
  const text = await response.text();
  // Parsed only to be checked: numbers beyond 2^53 would not survive a round trip.
  return json(pretty(text));
}

// Line breaks and indents for compact JSON, without touching a single value.
function pretty(text) {
  let depth = 0;
  const indent = () => `\n${"  ".repeat(depth)}`;
  return text.replace(/("(?:\\.|[^"\\])*")|([[{])(\s*[\]}])?|([\]}])|,|:/g, (token, string, open, empty, close) => {
    if (string) return string;
    if (open && empty) return open + empty.trim();
    if (open) return (depth++, open + indent());
    if (close) return (depth--, indent() + close);
    return token === "," ? `,${indent()}` : ": ";
  });
}

async function follow(response, answer) {
  const pre = element("pre", { tabindex: "0" });
  answer.append(pre);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks.filter((text) => !text.startsWith(":"))) {
      pre.append(`${block.replace(/^event: message\n/m, "").replace(/^data: /m, "")}\n\n`);
    }
    // A watch may run for days: the page keeps the last thousand events.
    while (pre.childNodes.length > 1000) pre.firstChild.remove();
    pre.scrollTop = pre.scrollHeight;
  }
}
