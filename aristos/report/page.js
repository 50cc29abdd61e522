"use strict";
// Draws every figure of the page from the JSON in it, in the colours of the page.
(() => {
  // Okabe and Ito's colours, which colour-blind readers can tell apart; pale enough for dark paper in the second row.
  const LINES = {
    light: ["#0072B2", "#C46A00", "#009E73", "#D55E00", "#8A5A9E", "#444444", "#3399CC", "#A89500"],
    dark: ["#56B4E9", "#E69F00", "#2CC79B", "#FF8A4C", "#CC9BE0", "#BBBBBB", "#8FD0F5", "#F0E442"],
  };
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  let printing = false;

  const colour = (name) => {
    if (printing) return { text: "#000000", faint: "#8a929b", line: "#cccccc", good: "#00694c", bad: "#a53f00" }[name];
    return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  };
  const named = (value) => (["text", "faint", "good", "bad"].includes(value) ? colour(value) : value);

  const drawn = (box) => {
    const figure = JSON.parse(document.getElementById(box.dataset.figure).textContent);
    const narrow = box.clientWidth < 520;
    for (const trace of figure.data) {
      if (trace.marker && trace.marker.color) trace.marker.color = named(trace.marker.color);
      if (trace.error_x && trace.error_x.color) trace.error_x.color = named(trace.error_x.color);
    }
    const axis = { gridcolor: colour("line"), linecolor: colour("line"), zeroline: false, automargin: true };
    for (const shape of figure.layout.shapes || []) shape.line.color = colour("text");
    const size = narrow ? 10 : 12;
    const layout = {
      ...figure.layout,
      height: figure.height,
      margin: { l: 12, r: 12, t: 30, b: 12 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: colour("text"), family: "system-ui, sans-serif", size },
      colorway: LINES[dark.matches && !printing ? "dark" : "light"],
      legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom" },
      hovermode: "closest",
      dragmode: narrow ? false : "zoom", // so that a finger on a plot still moves the page
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("faint"), activecolor: colour("text") },
      xaxis: { ...axis, ...figure.layout.xaxis },
      yaxis: { ...axis, ...figure.layout.yaxis },
    };
    const labels = figure.layout.yaxis.ticktext;
    if (narrow && labels) {
      const cut = (text) => (text.length > 24 ? `${text.slice(0, 11)}…${text.slice(-11)}` : text);
      layout.yaxis.ticktext = labels.map(cut);
    }
    const options = {
      displaylogo: false,
      responsive: true,
      modeBarButtons: [["toImage"], ["zoom2d", "pan2d"], ["zoomIn2d", "zoomOut2d", "resetScale2d"]],
      displayModeBar: narrow ? false : "hover",
    };
    return Plotly.react(box, figure.data, layout, options);
  };
  const all = () => document.querySelectorAll("div[data-figure]").forEach(drawn);

  const print = (now) => {
    printing = now;
    if (now) document.querySelectorAll("details").forEach((each) => each.toggleAttribute("data-was", each.open));
    document.querySelectorAll("details").forEach((each) => { each.open = now || each.hasAttribute("data-was"); });
    all();
  };
  window.addEventListener("beforeprint", () => print(true));
  window.addEventListener("afterprint", () => print(false));
  dark.addEventListener("change", all);
  all();
})();
