// The gene explorer: sort, search and filter rows that the page carries, and write a screenful at a time.
(function () {
  var source = document.getElementById("gene-rows");
  if (!source) { return; }
  var data = JSON.parse(source.textContent), table = document.getElementById("genes");
  var search = document.getElementById("gene-search"), count = document.getElementById("gene-count");
  var more = document.getElementById("gene-more"), column = -1, up = false, shown = 100;
  var SET = data.columns.indexOf("set"), GRADE = data.columns.indexOf("grade");
  var WHOLE = { share: 1, detected: 1 };
  var head = table.tHead.insertRow();
  var picks = ["gene-set", "gene-grade"].map(function (name) { return document.getElementById(name); });

  data.columns.forEach(function (name, place) {
    var cell = document.createElement("th"), button = document.createElement("button");
    button.type = "button"; button.className = "sort"; button.textContent = name;
    button.addEventListener("click", function () {
      up = column === place ? !up : place === 0 || place === GRADE;
      column = place; shown = 100; draw();
    });
    cell.appendChild(button); head.appendChild(cell);
  });

  function written(value, name) {
    if (value === null) { return "–"; }
    if (typeof value !== "number") { return value; }
    return WHOLE[name] ? Math.round(100 * value) + " %" : value.toFixed(3);
  }

  function order(a, b) {
    var x = a[column], y = b[column];
    if (x === null || y === null) { return (x === null) - (y === null); }  // undefined goes last, both ways
    var way = typeof x === "number" ? x - y : String(x).localeCompare(String(y), undefined, { numeric: true });
    return up ? way : -way;
  }

  function draw() {
    var wanted = search.value.trim().toLowerCase(), set = picks[0].value, grade = picks[1].value;
    var found = data.rows.filter(function (row) {
      var sets = row[SET] === "" ? ["other"] : row[SET].split(" ");
      return (wanted === "" || row[0].toLowerCase().indexOf(wanted) >= 0)
        && (set === "" || sets.indexOf(set) >= 0) && (grade === "" || row[GRADE] === grade);
    });
    if (column >= 0) { found.sort(order); }
    var body = document.createElement("tbody");
    found.slice(0, shown).forEach(function (row) {
      var line = body.insertRow();
      row.forEach(function (value, place) {
        var cell = line.insertCell();
        cell.textContent = place === SET && value === "" ? "other" : written(value, data.columns[place]);
        if (place === GRADE) { cell.className = "grade"; cell.dataset.grade = value; }
      });
    });
    table.replaceChild(body, table.tBodies[0]);
    Array.from(head.cells).forEach(function (cell, place) {
      if (place === column) { cell.setAttribute("aria-sort", up ? "ascending" : "descending"); }
      else { cell.removeAttribute("aria-sort"); }
    });
    count.textContent = found.length.toLocaleString("en") + " " + table.dataset.word;
    more.hidden = found.length <= shown;
  }

  search.addEventListener("input", function () { shown = 100; draw(); });
  picks.forEach(function (pick) { pick.addEventListener("change", function () { shown = 100; draw(); }); });
  more.addEventListener("click", function () { shown += 400; draw(); });
  draw();
})();

// Maps: one gene at a time, picked from a list. Without this script all of them stand below each other.
(function () {
  var pick = document.getElementById("map-gene");
  if (!pick) { return; }
  function show() {
    document.querySelectorAll("[data-map-gene]").forEach(function (block) {
      block.hidden = block.dataset.mapGene !== pick.value;
    });
  }
  document.getElementById("map-pick").hidden = false;
  pick.addEventListener("change", show);
  show();
})();
