// The page is complete without this script. It adds sorting, the mark of a method under the
// pointer, and the choice of the cell whose curves are drawn.
"use strict";
(function () {
  const $ = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  document.body.classList.add("script");

  // Sorting. A cell without a number in data-v sorts by its text.
  for (const table of all("table.sortable")) {
    all("thead th", table).forEach((header, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...header.childNodes);
      header.append(button);
      button.addEventListener("click", () => sort(table, header, column));
    });
  }

  function sort(table, header, column) {
    const falling = header.getAttribute("aria-sort") === "ascending";
    all("thead th", table).forEach((other) => other.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const key = (row) => {
      const cell = row.children[column];
      return "v" in cell.dataset ? Number(cell.dataset.v) : cell.textContent;
    };
    const rows = all("tbody tr", table).sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      const order = typeof x === "number" ? x - y : x.localeCompare(y);
      return falling ? -order : order;
    });
    $("tbody", table).append(...rows);
  }

  // A method under the pointer is marked everywhere. Without one, the chosen method is.
  let chosenMethod = "";
  function mark(method) {
    document.body.classList.toggle("dim", method !== "");
    for (const part of all("[data-m]")) {
      part.classList.toggle("on", method !== "" && part.dataset.m === method);
    }
  }
  document.addEventListener("pointerover", (event) => {
    const part = event.target.closest("[data-m]");
    mark(part && !part.closest(".heat") ? part.dataset.m : chosenMethod);
  });

  // Curves: [lowest, highest, two digits of base 64 per point], one number, or null.
  const data = JSON.parse($("#curves-data").textContent);
  const DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
  function decode(code) {
    if (code === null || code === undefined) return null;
    if (typeof code === "number") return Array(data.points).fill(code);
    const [low, high, text] = code;
    return Array.from({ length: data.points }, (_, i) => {
      const level = 64 * DIGITS.indexOf(text[2 * i]) + DIGITS.indexOf(text[2 * i + 1]);
      return level === 4095 ? NaN : low + ((high - low) * level) / 4094;
    });
  }

  const styles = new Map(all(".legend li").map((item) => {
    return [item.dataset.m, $("path", item).getAttribute("class")];
  }));
  const LEFT = 46, RIGHT = 428, TOP = 26, BOTTOM = 262;

  function make(name, attributes, text) {
    const node = document.createElementNS($("svg").namespaceURI, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    return node;
  }

  function ticks(low, high) {
    const rough = (high - low) / 5, unit = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * unit).find((m) => m >= rough) || 10 * unit;
    const found = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) found.push(k * step);
    return found;
  }

  const short = (value) => String(Number(value.toPrecision(4))).replace("-", "−");

  // Draws lines into a chart as drawings.py does. A range that is null is that of the lines.
  function draw(chart, lines, label, last, late) {
    const values = lines.flatMap(({ y }) => {
      const part = late ? y.slice(Math.round(0.25 * (y.length - 1))) : y;
      return part.some(Number.isFinite) ? part : y;
    }).filter(Number.isFinite);
    const lowest = Math.min(...values, ...(values.length ? [] : [0]));
    const highest = Math.max(...values, ...(values.length ? [] : [0]));
    const room = 0.05 * (highest - lowest) || 0.5;
    const low = lowest - room, high = highest + room;
    const size = BOTTOM - TOP;
    const height = (y) => ((high - y) / (high - low)) * size;
    const width = (i) => (i / (data.points - 1)) * (RIGHT - LEFT);

    all("svg, .grid, text:not(.label), .axis:not(:first-of-type)", chart).forEach((node) => node.remove());
    $("title", chart).textContent = label;
    $("desc", chart).textContent = `Mean ${label} of ${lines.length} methods against the step.`;
    $(".label.up", chart).textContent = label;
    for (const tick of ticks(low, high)) {
      const y = TOP + height(tick);
      chart.append(make("path", { d: `M${LEFT} ${y}H${RIGHT}`, class: "grid" }));
      chart.append(make("text", { x: LEFT - 6, y: y + 4, "text-anchor": "end" }, short(tick)));
    }
    for (const tick of ticks(0, last || 1)) {
      const x = LEFT + (tick / (last || 1)) * (RIGHT - LEFT);
      chart.append(make("path", { d: `M${x} ${BOTTOM}v4`, class: "axis" }));
      chart.append(make("text", { x, y: BOTTOM + 17, "text-anchor": "middle" }, short(tick)));
    }

    const [across, up] = [RIGHT - LEFT, BOTTOM - TOP + 4];
    const place = { x: LEFT, y: TOP - 2, width: across, height: up };
    const plot = make("svg", { ...place, viewBox: `0 -2 ${across} ${up}`, class: "plot" });
    for (const { method, y } of lines) {
      let d = "", command = "M";
      y.forEach((value, i) => {
        if (!Number.isFinite(value)) command = "M";
        else {
          const inside = Math.min(Math.max(height(value), -9 * size), 9 * size);
          d += `${command}${width(i).toFixed(1)} ${inside.toFixed(1)}`;
          command = "L";
        }
      });
      const path = make("path", { d, class: styles.get(method), "data-m": method });
      path.append(make("title", {}, method));
      plot.append(path);
    }
    chart.append(plot);
    chart.onpointermove = (event) => read(event, chart, lines, label, last, height);
  }

  // Writes the method, the step and the value nearest to the pointer.
  function read(event, chart, lines, label, last, height) {
    const box = chart.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * 440;
    const y = ((event.clientY - box.top) / box.height) * 300 - TOP;
    const i = Math.round(((x - LEFT) / (RIGHT - LEFT)) * (data.points - 1));
    const near = lines.filter((line) => Number.isFinite(line.y[i]));
    if (!near.length) return;
    const far = (line) => Math.abs(height(line.y[i]) - y);
    const line = near.reduce((a, b) => (far(b) < far(a) ? b : a));
    const step = Math.round((last * i) / (data.points - 1));
    $("#readout").textContent = `${line.method}, step ${step}: ${label} ${short(line.y[i])}`;
    mark(line.method);
  }

  // The choosers.
  const box = $("#choosers");
  function chooser(name, options) {
    const label = document.createElement("label"), select = document.createElement("select");
    options.forEach(([value, text]) => select.add(new Option(text, value)));
    label.append(name, select);
    box.append(label);
    select.addEventListener("change", show);
    return select;
  }
  const named = (names) => names.map((name, i) => [i, name]);
  const instance = chooser("Instance", named(data.instances));
  const method = chooser("Method", [[-1, "all methods"], ...named(data.methods)]);
  const channel = chooser("Channel", named(data.channels));
  box.hidden = false;

  function show() {
    const i = Number(instance.value), m = Number(method.value), c = channel.value;
    const lines = (code) => data.methods
      .map((name, k) => ({ method: name, y: decode(code(k)) }))
      .filter(({ y }) => y !== null);
    chosenMethod = m < 0 ? "" : data.methods[m];
    for (const option of channel.options) {
      option.disabled = m >= 0 && !(option.value in data.panel[i][m]);
    }

    const curves = $("#curve-chart"), traces = $("#trace-chart");
    const probe = lines((k) => data.probe[i][k]);
    if (curves && probe.length) draw(curves, probe, "probe loss", data.steps[i], true);
    const panel = lines((k) => data.panel[i][k][c]);
    if (traces) draw(traces, panel, data.channels[c] || "", data.steps[i], false);

    const who = chosenMethod || "all methods";
    $("#chosen").textContent =
      `Instance ${data.instances[i]}, channel ${data.channels[c] || "none"}, ${who}`;
    $("#readout").textContent = "";
    all("td.chosen").forEach((cell) => cell.classList.remove("chosen"));
    mark(chosenMethod);
  }

  // A cell of the heat map is chosen by a click. The choosers do the same from the keyboard.
  const heatRows = all(".heat tbody tr");
  heatRows.forEach((row, i) => {
    row.addEventListener("click", (event) => {
      const cell = event.target.closest("td[data-m]");
      if (!cell) return;
      instance.value = i;
      method.value = data.methods.indexOf(cell.dataset.m);
      const own = Object.keys(data.panel[i][method.value]);
      if (own.length && !own.includes(channel.value)) channel.value = own[0];
      show();
      cell.classList.add("chosen");
      $("#curves").scrollIntoView();
    });
  });
})();
