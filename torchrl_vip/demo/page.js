// Draws what the server measured. `vip.clip`, `vip.attempts` and `vip.episode` each make a component's view:
// a function of its value. Nothing is fetched but from this page's own server.
window.vip = (() => {
  const COLOURS = ["#2563eb", "#db2777", "#0d9488", "#d97706", "#7c3aed", "#65a30d", "#0891b2", "#b91c1c",
    "#4d7c0f", "#a21caf", "#0369a1", "#78716c"];
  const LEFT = 46, RIGHT = 10; // margins of every chart, so that all have one time axis

  // -- elements -----------------------------------------------------------------------------------
  const make = (space) => (tag, attributes = {}, ...children) => {
    const node = space ? document.createElementNS(space, tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value !== undefined) node.setAttribute(name, value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  };
  const el = make(null), svg = make("http://www.w3.org/2000/svg");
  const url = (path) => new URL(path, document.baseURI).href;

  // -- charts -------------------------------------------------------------------------------------
  function ticks(low, high, count) {
    const step = 10 ** Math.floor(Math.log10((high - low) / count || 1));
    const size = [1, 2, 5, 10].map((k) => k * step).find((s) => (high - low) / s <= count) || step;
    const found = [];
    for (let v = Math.ceil(low / size - 1e-9) * size; v <= high + 1e-9 * size; v += size) found.push(v);
    return found;
  }
  const short = (v) => (Math.abs(v) < 1e-12 ? "0" : String(+v.toPrecision(3)));

  // series: [{name, x, y, colour}]; bars: one series as bars, green up and red down.
  function chart(width, { series, end, height, title, unit, bars = false, axis = false, from0 = true }) {
    const bottom = axis ? 32 : 8, top = 20;
    const all = series.flatMap((s) => s.y);
    let low = Math.min(...all, 0), high = Math.max(...all, from0 ? 1e-6 : -Infinity);
    if (!(high > low)) high = low + 1;
    high += 0.05 * (high - low);
    if (low < 0) low -= 0.05 * (high - low);
    const px = (t) => LEFT + ((width - LEFT - RIGHT) * t) / (end || 1);
    const py = (v) => top + ((height - top - bottom) * (high - v)) / (high - low);
    const node = svg("svg", { width, height, class: "vip-chart", role: "img", "aria-label": title });
    const text = width < 420 ? title.replace(/ \(.*/, "") : title;
    node.append(svg("text", { x: LEFT, y: 12, class: "vip-title" }, text));
    for (const v of ticks(low, high, height > 120 ? 4 : 2)) {
      node.append(svg("line", { x1: LEFT, x2: width - RIGHT, y1: py(v), y2: py(v),
        class: Math.abs(v) < 1e-12 ? "vip-zero" : "vip-grid" }));
      node.append(svg("text", { x: LEFT - 6, y: py(v) + 4, class: "vip-tick", "text-anchor": "end" }, short(v)));
    }
    if (axis) {
      for (const t of ticks(0, end, Math.max(2, Math.floor(width / 90)))) {
        node.append(svg("text", { x: px(t), y: height - bottom + 14, class: "vip-tick", "text-anchor": "middle" },
          short(t)));
      }
      node.append(svg("text", { x: width - RIGHT, y: height - 3, class: "vip-tick", "text-anchor": "end" }, unit));
    }
    for (const s of series) {
      if (bars) {
        for (let i = 0; i < s.y.length; i++) {
          const x = px(s.x[i]), w = Math.max(px(s.x[i + 1]) - x - (s.y.length < 120 ? 1 : 0), 0.7);
          node.append(svg("rect", { x, width: w, y: Math.min(py(s.y[i]), py(0)),
            height: Math.abs(py(s.y[i]) - py(0)), class: s.y[i] >= 0 ? "vip-up" : "vip-down" }));
        }
      } else {
        const points = s.y.map((v, i) => `${px(s.x[i]).toFixed(1)},${py(v).toFixed(1)}`).join(" ");
        node.append(svg("polyline", { points, class: "vip-line", stroke: s.colour }));
      }
    }
    const cursor = svg("line", { y1: top - 4, y2: height - bottom, x1: LEFT, x2: LEFT, class: "vip-cursor" });
    const dots = bars ? [] : series.map((s) => svg("circle", { r: 4, fill: s.colour, class: "vip-dot" }));
    return {
      node,
      time: (event) => ((event.clientX - node.getBoundingClientRect().left - LEFT) * end) / (width - LEFT - RIGHT),
      move(t) {
        node.append(cursor, ...dots);
        cursor.setAttribute("x1", px(t)); cursor.setAttribute("x2", px(t));
        dots.forEach((dot, i) => {
          const s = series[i], k = nearest(s.x, t);
          dot.setAttribute("cx", px(s.x[k])); dot.setAttribute("cy", py(s.y[k]));
        });
      },
    };
  }
  function nearest(times, t) {
    let best = 0;
    for (let i = 1; i < times.length; i++) if (Math.abs(times[i] - t) <= Math.abs(times[best] - t)) best = i;
    return best;
  }
  const legend = (series) => el("div", { class: "vip-legend" },
    ...series.map((s) => el("span", {}, el("i", { style: `background:${s.colour}` }), s.name)));

  // Keeps a view drawn as wide as its component.
  function widths(node, draw) {
    let last = 0;
    new ResizeObserver(() => {
      const width = Math.floor(node.clientWidth);
      if (width > 60 && width !== last) draw((last = width));
    }).observe(node);
  }

  const refusal = (text) => el("div", { class: "vip-refusal", role: "alert" }, text);
  const hint = (text) => el("div", { class: "vip-hint" }, text);

  // -- one video ----------------------------------------------------------------------------------
  function clip(root, value) {
    if (!value) return root.replaceChildren(hint("Drop a video, and its distance to the goal is drawn here."));
    if (value.refused) return root.replaceChildren(refusal(value.refused));
    const files = (name) => url(`${value.at}/${name}`);
    const frame = (i) => files(`frame_${String(i).padStart(4, "0")}.jpg`);
    const several = value.curves.length > 1;
    const part = (c) => (several ? 1 / (c.distance[0] || Math.max(...c.distance) || 1) : 1);
    const series = value.curves.map((c, i) => ({ name: c.name, x: value.times,
      y: c.distance.map((d) => d * part(c)), colour: COLOURS[i] }));
    const rewards = value.curves.map((c, i) => ({ name: c.name, x: several ? value.times.slice(1) : value.times,
      y: c.reward.map((r) => r * part(c)), colour: COLOURS[i] }));

    // The same video goes on playing when only goal or encoders change.
    const before = root.querySelector("video");
    const source = files("played.mp4");
    const video = before && before.dataset.source === source ? before : el("video", { src: source,
      "data-source": source, muted: "", autoplay: "", loop: "", playsinline: "", controls: "", preload: "auto" });
    video.muted = true;
    const goal = value.goal === null ? files(`goal.jpg?${value.stamp}`) : frame(value.goal);
    const readout = el("figcaption", { class: "vip-readout" });
    const stage = el("div", { class: "vip-stage" },
      el("figure", {}, video, readout),
      el("figure", { class: "vip-goal" }, el("img", { src: goal, alt: "goal image" }),
        el("figcaption", {}, `goal: ${value.goal_name}`)));
    const plots = el("div", { class: "vip-plots" });
    const words = el("div", { class: "vip-words" }, ...value.curves.map((c, i) => el("p", {},
      several ? el("b", { style: `color:${COLOURS[i]}` }, `${c.name}: `) : null, c.sentences.join(" "))));
    root.replaceChildren(stage, plots, words, downloads(value), code(value.code), hint(value.note));

    let charts = [], strip = [];
    const seek = (event) => {
      if (event.type === "pointermove" && !event.buttons) return;
      const t = Math.min(Math.max(charts[0].time(event), 0), value.times.at(-1));
      video.pause(); video.currentTime = t; show(t);
    };
    function show(t) {
      charts.forEach((c) => c.move(Math.min(t, value.times.at(-1))));
      const k = nearest(value.times, t);
      readout.textContent = `${value.times[k].toFixed(1)} s: ` + value.curves.map((c, i) =>
        `${several ? c.name + " " : "distance "}${short(series[i].y[k])}`).join(", ");
      strip.forEach((s) => s.node.classList.toggle("vip-now", t >= s.from && t < s.to));
    }
    function draw(width) {
      const unit = several ? "first frame = 1" : "embedding units";
      charts = [
        chart(width, { series, end: value.end, height: 190, title: `distance to the goal (${unit})` }),
        chart(width, { series: rewards, end: value.end, height: 130, bars: !several, axis: true, unit: "seconds",
          title: several ? "reward of each step" : "reward of each step (green: nearer to the goal)" }),
      ];
      strip = frames(width);
      const row = el("div", { class: "vip-strip", style: `margin:0 ${RIGHT}px 0 ${LEFT}px` },
        ...strip.map((s) => s.node));
      const area = el("div", { class: "vip-area", onpointerdown: seek, onpointermove: seek }, row,
        ...charts.map((c) => c.node));
      plots.replaceChildren(...(several ? [legend(series)] : []), area);
      show(video.currentTime || 0);
    }
    function frames(width) { // each in the middle of the time that it is drawn above
      const count = Math.max(3, Math.min(10, Math.floor((width - LEFT - RIGHT) / 76)));
      return Array.from({ length: count }, (_, i) => {
        const from = (value.end * i) / count, to = (value.end * (i + 1)) / count;
        const k = nearest(value.times, (from + to) / 2);
        return { from, to, node: el("div", {}, el("img", { src: frame(k), alt: `frame at ${value.times[k]} s`,
          draggable: "false" }), el("span", {}, `${value.times[k].toFixed(1)} s`)) };
      });
    }
    widths(plots, draw);
    if (video !== before && innerWidth < 700) root.scrollIntoView({ behavior: "smooth" });
    video.vipShow = show;
    if (video !== before) {
      let shown = -1;
      const follow = () => {
        if (Math.abs(video.currentTime - shown) > 0.02) video.vipShow((shown = video.currentTime));
        if (video.isConnected) requestAnimationFrame(follow);
      };
      requestAnimationFrame(() => requestAnimationFrame(follow));
    }
  }
  function downloads(value) {
    const link = (file, text) => el("a", { href: url(`${value.at}/${file}?${value.stamp}`), class: "vip-button",
      download: value.name.replace(/\.\w+$/, "") + "_" + file, "data-file": file, onclick: save }, text);
    return el("div", { class: "vip-actions" }, link("curve.png", "Picture (PNG)"), link("curve.csv", "Numbers (CSV)"),
      link("curve.mp4", "Film (MP4)"));
  }
  async function save(event) { // drawing takes seconds: say so meanwhile
    const link = event.currentTarget, text = link.textContent;
    if (link.dataset.ready) { delete link.dataset.ready; return; }
    event.preventDefault();
    if (link.classList.contains("vip-busy")) return;
    link.classList.add("vip-busy"); link.textContent = "drawing …";
    try {
      const answer = await fetch(link.href);
      if (!answer.ok) throw new Error(await answer.text());
      const made = URL.createObjectURL(await answer.blob());
      const anchor = el("a", { href: made, download: link.download });
      document.body.append(anchor); anchor.click(); anchor.remove();
      setTimeout(() => URL.revokeObjectURL(made), 60000);
      link.textContent = text;
    } catch (error) { link.textContent = "failed: drop the video again"; }
    link.classList.remove("vip-busy");
  }
  function code(text) {
    const button = el("button", { class: "vip-button", type: "button", onclick: async () => {
      await navigator.clipboard.writeText(text); button.textContent = "copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    } }, "Copy");
    return el("div", { class: "vip-code" }, el("div", { class: "vip-codehead" },
      el("span", {}, "The same rewards in Python"), button), el("pre", {}, el("code", {}, text)));
  }

  // -- several attempts ---------------------------------------------------------------------------
  function attempts(root, value) {
    if (!value) return root.replaceChildren(hint("Drop several videos of one task: the one that ends nearest to the goal is first."));
    if (value.refused) return root.replaceChildren(refusal(value.refused));
    const end = Math.max(...value.attempts.map((a) => a.end));
    const series = value.attempts.map((a, i) => ({ name: a.name, x: a.times, y: a.distance, colour: COLOURS[i] }));
    const plots = el("div", { class: "vip-plots" });
    const rows = value.attempts.map((a, i) => el("div", { class: "vip-attempt" },
      el("div", { class: "vip-rank" }, a.rank ? String(a.rank) : "–"),
      el("img", { src: url(a.last), alt: `last frame of ${a.name}` }),
      el("div", {}, el("div", { class: "vip-name" }, el("i", { style: `background:${COLOURS[i]}` }), a.name),
        el("p", {}, a.said), el("p", {}, `Distance at its end ${short(a.distance.at(-1))}, order ${a.order.toFixed(2)}.`))));
    root.replaceChildren(
      el("p", { class: "vip-verdict" }, value.verdict),
      plots, ...rows,
      el("figure", { class: "vip-goal vip-small" }, el("img", { src: url(value.goal), alt: "goal image" }),
        el("figcaption", {}, `goal: ${value.goal_name}`)),
      ...value.refusals.map(refusal), hint(value.note));
    widths(plots, (width) => plots.replaceChildren(legend(series), chart(width, { series, end, height: 260,
      axis: true, unit: "seconds", title: "distance to the goal (embedding units)" }).node));
  }

  // -- an environment, live -----------------------------------------------------------------------
  function episode(root, value) {
    if (!value) return root.replaceChildren(hint("Choose a task and press Start."));
    if (value.refused) return root.replaceChildren(refusal(value.refused));
    let view = root.vipView;
    if (!view || !view.stage.isConnected) {
      view = root.vipView = { now: el("img", { alt: "the environment" }), goal: el("img", { alt: "goal image" }),
        said: el("figcaption", { class: "vip-readout" }), plots: el("div", { class: "vip-plots" }),
        words: el("p", { class: "vip-verdict" }) };
      view.stage = el("div", { class: "vip-stage vip-even" }, el("figure", {}, view.now, view.said),
        el("figure", { class: "vip-goal" }, view.goal, el("figcaption", {}, "goal: the task solved from another start")));
      root.replaceChildren(view.stage, view.plots, view.words);
      widths(view.plots, (width) => { view.width = width; view.draw(); });
    }
    view.draw = () => {
      const count = value.distance.length, x = value.distance.map((_, i) => i);
      if (!view.width || !count) return;
      const end = Math.max(value.steps, 1);
      const distance = chart(view.width, { series: [{ x, y: value.distance, colour: COLOURS[0] }], end, height: 190,
        title: "distance to the goal (embedding units)" });
      const reward = chart(view.width, { series: [{ x, y: value.reward, colour: COLOURS[0] }], end, height: 130,
        bars: true, axis: true, unit: "step", title: "reward of each step (a whole clip adds up to about 1)" });
      distance.move(count - 1); reward.move(count - 1);
      view.plots.replaceChildren(distance.node, reward.node);
    };
    if (value.frame) view.now.src = value.frame;
    if (value.goal) view.goal.src = value.goal;
    view.stage.hidden = !value.frame;
    view.said.textContent = value.said;
    view.words.textContent = value.words;
    view.draw();
  }

  // Gradio calls this once for each component; its root survives what Gradio draws again.
  function mount(draw, element, props, watch) {
    const root = el("div", { class: "vip-root" });
    const show = () => {
      const place = element.querySelector(".vip-mount");
      if (place && root.parentNode !== place) place.replaceChildren(root);
      draw(root, props.value);
    };
    watch("value", show);
    show();
  }
  return { clip, attempts, episode, mount };
})();
