/* Elements are made from texts, never from HTML: no caption, tag or name can become markup. */

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter(child => child !== null));
  return element;
}

const make = (name, attributes = {}, ...children) => fill(document.createElement(name), attributes, children);
const draw = (name, attributes = {}, ...children) => fill(document.createElementNS(SVG, name), attributes, children);
const byId = name => document.getElementById(name);
const slug = text => text.replace(/ /g, "-");

const percent = (value, sign = "") => (value >= 0 ? sign : "") + (100 * value).toFixed(1);
const interval = ([low, high], sign = "") => `[${percent(low, sign)}, ${percent(high, sign)}]`;
const number = value => Number(value.toPrecision(4)).toString();

function option(value, text) {
  return make("option", { value }, text);
}
