"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");

  function config() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue("--" + name).trim();
    const text = colour("muted");
    return {
      background: "transparent",
      font: "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif",
      view: { stroke: null },
      axis: {
        labelColor: text, titleColor: text, titleFontWeight: "normal", titleFontSize: 12, labelFontSize: 11,
        gridColor: colour("line"), domain: false, ticks: false, labelPadding: 6, titlePadding: 8,
      },
      axisX: { grid: false },
      legend: {
        labelColor: text, title: null, orient: "top", labelFontSize: 12, symbolType: "square", offset: 4,
        layout: { top: { anchor: "start", direction: "vertical", margin: 4 } },
      },
      bar: { color: colour("chosen") },
      rule: { color: colour("ink") },
      text: { color: text, fontSize: 11 },
      range: { category: [colour("chosen"), colour("rejected"), colour("other"), colour("warning")] },
    };
  }

  function draw() {
    for (const [name, specification] of Object.entries(charts)) {
      const place = document.getElementById("chart-" + name);
      if (!place) continue;
      vegaEmbed(place, specification, { actions: false, renderer: "svg", ast: true, config: config() })
        .then(() => place.classList.add("drawn"))
        .catch((error) => { place.textContent = "This chart could not be drawn: " + error.message; });
    }
  }

  draw();
  dark.addEventListener("change", draw);
})();
