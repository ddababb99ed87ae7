// One question: a fieldset of radio buttons, a button, and an answer that screen readers announce.
// Text goes in through textContent only, so nothing in it can become markup.
let serial = 0;
function make(tag, parent, properties = {}) {
  const element = Object.assign(document.createElement(tag), properties);
  parent.append(element);
  return element;
}
export default {
  render({ model, el }) {
    const name = `mrt-choice-${++serial}`;
    el.classList.add("mrt-choice");
    el.dataset.again = model.get("again");
    const fieldset = make("fieldset", el);
    make("legend", fieldset, { textContent: model.get("question") });
    model.get("options").forEach((text, index) => {
      const label = make("label", fieldset);
      const radio = make("input", label, { type: "radio", name, checked: model.get("chosen") === index });
      make("span", label, { textContent: text });
      radio.addEventListener("change", () => {
        model.set("chosen", index);
        model.save_changes();
      });
    });
    const button = make("button", fieldset, { type: "button", textContent: model.get("button") });
    button.addEventListener("click", () => {
      model.set("asked", model.get("asked") + 1);
      model.save_changes();
    });
    const answer = make("div", fieldset);
    answer.setAttribute("role", "status");
    const show = () => {
      answer.textContent = model.get("answer");
      answer.dataset.verdict = model.get("verdict");
    };
    model.on("change:answer", show);
    model.on("change:verdict", show);
    show();
  },
};
