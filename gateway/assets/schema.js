// JSON Schemas as lists of fields that open on demand, and as examples to start from.

import { element, prose } from "./dom.js";

export class Schemas {
  constructor(components) {
    this.components = components;
  }

  resolve(schema) {
    if (!schema?.$ref) return schema || {};
    return { ...this.components[schema.$ref.split("/").pop()], ...schema, $ref: undefined };
  }

  typeName(schema) {
    if (schema.$ref) return schema.$ref.split("/").pop().split(".").slice(-1)[0];
    if (schema.oneOf) return schema.oneOf.map((one) => this.typeName(one)).join(" or ");
    if (schema.type === "array") return `${this.typeName(schema.items || {})}[]`;
    if (schema.additionalProperties) return `{ key: ${this.typeName(schema.additionalProperties)} }`;
    const type = Array.isArray(schema.type) ? schema.type[0] : schema.type || "any";
    const detail = schema.format || (schema.contentEncoding ? schema.contentEncoding : "");
    return detail ? `${type} · ${detail}` : type;
  }

  // The object behind a schema, through arrays and maps; null for scalars.
  inner(schema) {
    const found = this.resolve(schema);
    if (found.type === "array") return this.inner(found.items || {});
    if (found.additionalProperties) return this.inner(found.additionalProperties);
    return found.properties ? found : null;
  }

  // `isWriting` leaves out what only the server sets.
  fields(schema, { isWriting = false } = {}) {
    const object = this.inner(schema) || {};
    const required = new Set(object.required || []);
    const list = element("ul", { class: "fields" });
    for (const [name, field] of Object.entries(object.properties || {})) {
      if (!(isWriting && field.readOnly)) list.append(this.field(name, field, { required: required.has(name), isWriting }));
    }
    return list;
  }

  field(name, schema, { required = false, isWriting = false, description = schema.description } = {}) {
    const resolved = this.resolve(schema.type === "array" ? schema.items : schema);
    const item = element(
      "li",
      {},
      element("span", { class: "name" }, name),
      element("span", { class: "type" }, this.typeName(schema)),
      required && element("span", { class: "must" }, "required"),
      schema["x-immutable"] && element("span", { class: "mark" }, "immutable"),
      description && prose(description),
    );
    const object = this.inner(schema);
    if (resolved.enum) item.append(this.later(`${resolved.enum.length} values`, () => this.values(resolved)));
    else if (object) item.append(this.later(`fields of ${this.typeName(schema).replace("[]", "")}`, () => this.fields(schema, { isWriting })));
    return item;
  }

  // Drawn when it is opened: a message may contain itself.
  later(title, draw) {
    const box = element("details", {}, element("summary", {}, title));
    box.addEventListener("toggle", () => box.open && box.children.length === 1 && box.append(draw()));
    return box;
  }

  values(schema) {
    const words = schema["x-enum-descriptions"] || {};
    const rows = schema.enum.map((value) =>
      element("li", {}, element("span", { class: "name" }, value), words[value] && prose(words[value])),
    );
    return element("ul", { class: "fields" }, ...rows);
  }

  // What to start from: the required fields, or all that may be written.
  example(schema, { all = false, depth = 0 } = {}) {
    const found = this.resolve(schema);
    if (found.examples) return found.examples[0];
    if (found.enum) return found.enum[1] || found.enum[0];
    if (found.type === "array") return depth > 3 ? [] : [this.example(found.items || {}, { all, depth: depth + 1 })];
    if (found.additionalProperties) return {};
    if (found.properties) return this.exampleObject(found, all, depth);
    const type = Array.isArray(found.type) ? found.type[0] : found.type;
    if (found.format === "int64" || found.format === "uint64") return "0";
    return { string: "", integer: 0, number: 0, boolean: false, object: {} }[type] ?? null;
  }

  exampleObject(schema, all, depth) {
    const required = new Set(schema.required || []);
    const losers = new Set((schema["x-oneofs"] || []).flatMap((names) => names.slice(1)));
    const value = {};
    for (const [name, field] of Object.entries(schema.properties)) {
      const wanted = required.has(name) || (all && depth < 3 && !losers.has(name));
      if (wanted && !field.readOnly) value[name] = this.example(field, { all, depth: depth + 1 });
    }
    return value;
  }
}
