// Small pieces of page: elements, prose with a little Markdown, JSON with colours. Everything is text, never HTML.

export function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value != null) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child != null && child !== false));
  return node;
}

// `code`, **bold** and plain text.
function inline(text) {
  return text.split(/(`[^`]+`|\*\*[^*]+\*\*)/).map((part) => {
    if (part.startsWith("`") && part.length > 1) return element("code", {}, part.slice(1, -1));
    if (part.startsWith("**") && part.length > 3) return element("strong", {}, part.slice(2, -2));
    return part;
  });
}

export function prose(text) {
  const box = element("div", { class: "prose" });
  for (const block of (text || "").split(/\n\s*\n/)) {
    const lines = block.split("\n").filter((line) => line.trim());
    let list = null;
    let paragraph = [];
    const flush = () => {
      if (paragraph.length) box.append(element("p", {}, ...inline(paragraph.join(" "))));
      paragraph = [];
    };
    for (const line of lines) {
      if (/^\s*- /.test(line)) {
        flush();
        if (!list) box.append((list = element("ul")));
        list.append(element("li", {}, ...inline(line.replace(/^\s*- /, ""))));
      } else if (list && /^\s/.test(line)) {
        list.lastChild.append(" ", ...inline(line.trim()));
      } else {
        list = null;
        paragraph.push(line.trim());
      }
    }
    flush();
  }
  return box;
}

const TOKEN = /("(?:\\.|[^"\\])*")(\s*:)?|(-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)|\b(true|false|null)\b/g;

export function json(text) {
  const pre = element("pre", { tabindex: "0" });
  let at = 0;
  if (text.length > 200000) {
    pre.textContent = text; // colours for a megabyte would freeze the page
    return pre;
  }
  for (const found of text.matchAll(TOKEN)) {
    pre.append(text.slice(at, found.index));
    const [all, string, colon, number] = found;
    const kind = string ? (colon ? "j-key" : "j-text") : number ? "j-number" : "j-word";
    pre.append(element("span", { class: kind }, string || all), colon || "");
    at = found.index + all.length;
  }
  pre.append(text.slice(at));
  return pre;
}
