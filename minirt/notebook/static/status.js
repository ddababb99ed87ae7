// A line that stays in the page and is announced when its words change.
export default {
  render({ model, el }) {
    const line = document.createElement("div");
    line.setAttribute("role", "status");
    line.className = "mrt-status";
    el.append(line);
    const show = () => { line.textContent = model.get("value"); };
    model.on("change:value", show);
    show();
  },
};
