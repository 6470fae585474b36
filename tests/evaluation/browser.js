"use strict";
// A stand-in for a browser: as much of a document as the study page uses, and a participant who takes given steps.
//
//   node browser.js PAGE STEPS      STEPS: JSON, a list of "next", "back", "save", "reload", "without storage",
//                                   ["vote", question, choice] and ["place", video, place]
//
// Prints JSON: what is shown at first and after every step but votes, the note under it, and what was saved.
const fs = require("fs"), vm = require("vm");
const [page, steps] = [fs.readFileSync(process.argv[2], "utf8"), JSON.parse(process.argv[3])];
const script = /<script>([^]*)<\/script>/.exec(page)[1];
const ids = [...page.matchAll(/id="(\w+)"/g)].map(match => match[1]);

class Element {
  constructor(tag) { this.tag = tag; this.children = []; this.value = ""; }
  append(...children) { this.children.push(...children); }
  replaceChildren(...children) { this.children = children; }
  click() { if (this.download) out.file = this.download; }
  all(tag) { return this.children.flatMap(x => x instanceof Element ? [...(x.tag === tag ? [x] : []), ...x.all(tag)] : []); }
  get text() { return this.textContent ?? this.children.map(x => x instanceof Element ? x.text : x).join(""); }
}

const out = { shown: [] }, stored = new Map();
let elements, storage = {
  getItem: name => stored.get(name) ?? null,
  setItem: (name, value) => { stored.set(name, String(value)); },
};

function open() {
  elements = Object.fromEntries(ids.map(id => [id, new Element(id)]));
  vm.runInNewContext(script, {
    crypto: globalThis.crypto, console,
    document: { getElementById: id => elements[id], createElement: tag => new Element(tag) },
    get localStorage() { return storage; },
    Blob: class { constructor(parts) { this.text = parts.join(""); } },
    URL: { createObjectURL: blob => { out.saved = JSON.parse(blob.text); return "blob:"; } },
  });
}

function look() {
  const fields = elements.questions.all("fieldset"), inputs = fields.flatMap(x => x.all("input"));
  out.shown.push({
    where: elements.where.text, prompt: elements.prompt.text,
    legends: elements.questions.all("legend").map(x => x.text),
    choices: fields.length ? fields[0].all("label").map(x => x.text.trim()) : [],
    checked: fields.flatMap(x => x.all("input").flatMap((input, i) => input.checked ? [i] : [])),
    places: fields.flatMap(x => x.all("select").map(select => String(select.value))),
    videos: elements.videos.all("video").length, images: elements.references.all("img").length,
    sources: [...elements.videos.all("video"), ...elements.references.all("img")].map(x => x.src),
  });
  if (inputs.some(x => x.name !== inputs[0].name && x.type !== "radio")) throw new Error("choices are radio buttons");
}

if (steps[0] === "without storage") {
  const refuse = () => { throw new Error("SecurityError"); };
  storage = { getItem: refuse, setItem: refuse };
  steps.shift();
}
open();
look();
for (const step of steps) {
  const fields = elements.questions.all("fieldset");
  if (Array.isArray(step) && step[0] === "vote") {
    const inputs = fields[step[1]].all("input");
    for (const input of inputs) input.checked = input === inputs[step[2]];
    inputs[step[2]].onchange();
    continue;
  }
  if (Array.isArray(step)) {
    const select = fields[0].all("select")[step[1]];
    select.value = String(step[2]);
    select.onchange();
    continue;
  }
  if (step === "reload") open();
  else elements[step === "save" ? "export" : step].onclick();
  look();
}
out.note = elements.note.text;
console.log(JSON.stringify(out));
