(() => {
  const config = {
    displaylogo: false, displayModeBar: true,
    modeBarButtons: [["zoom2d", "autoScale2d", "resetScale2d", "toImage"]],
  };
  // in the very frame in which its place has changed, as plotly's own "responsive" waits for a tenth of a second, in
  // which a figure sticks out of a window that has become narrower
  const follow = new ResizeObserver((places) => {
    for (const { target: plot } of places) {
      const width = plot.clientWidth;
      if (plot.data && width && Math.round(plot._fullLayout.width) !== width) Plotly.relayout(plot, { width });
    }
  });
  const draw = (source) => {
    const plot = document.getElementById(source.dataset.plot);
    const { data, layout } = JSON.parse(source.textContent);
    Plotly.newPlot(plot, data, layout, config).then(() => follow.observe(plot)).catch((error) => fail(plot, error));
  };
  const fail = (plot, error) => {
    console.error(error);
    plot.className = "empty";
    plot.textContent = "This figure could not be drawn.";
  };
  const toggle = (button) => {
    const plot = button.closest("section").querySelector(".plot");
    const on = button.getAttribute("aria-pressed") !== "true";
    const group = button.dataset.group;
    const members = plot.data.flatMap((trace, i) => (trace.legendgroup === group ? [i] : []));
    button.setAttribute("aria-pressed", on);
    Plotly.restyle(plot, { visible: on }, members);
  };
  for (const source of document.querySelectorAll("script[data-plot]")) draw(source);
  for (const button of document.querySelectorAll(".key button")) button.addEventListener("click", () => toggle(button));
})();
