/** Reading CSV files needs no service. */

import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { examplesFromSheet, labelsOfSheet, type Example } from "../src/index.js";

let folder: string;

before(async () => {
  folder = await mkdtemp(join(tmpdir(), "acclimate-"));
  for (const name of ["a.png", "b, the second.png", 'c "quoted".png']) {
    await writeFile(join(folder, name), name);
  }
});

after(() => rm(folder, { recursive: true }));

async function read(text: string, options = {}): Promise<Example[]> {
  await writeFile(join(folder, "labels.csv"), text);
  const found: Example[] = [];
  for await (const example of examplesFromSheet(join(folder, "labels.csv"), options)) {
    found.push(example);
  }
  return found;
}

test("a row is an image, whatever the order of columns and the quotes", async () => {
  const found = await read(
    "\uFEFFtags,label,image\r\ncamera=3 night,cat,a.png\r\n" +
      ',"dog","b, the second.png"\r\n\r\n"x",cat,"c ""quoted"".png"',
  );
  assert.deepEqual(found, [
    { image: Buffer.from("a.png"), label: "cat", id: "a.png", tags: ["camera=3", "night"] },
    { image: Buffer.from("b, the second.png"), label: "dog", id: "b, the second.png", tags: [] },
    { image: Buffer.from('c "quoted".png'), label: "cat", id: 'c "quoted".png', tags: ["x"] },
  ]);
  assert.deepEqual(await labelsOfSheet(join(folder, "labels.csv")), ["cat", "dog"]);
});

test("so many of a class are read, and tags of all are added", async () => {
  const rows = "image,label\na.png,cat\na.png,cat\na.png,dog\n";
  const found = await read(rows, { limitPerClass: 1, tags: ["site=1"] });
  assert.deepEqual(found.map(({ label, tags }) => [label, tags]), [
    ["cat", ["site=1"]],
    ["dog", ["site=1"]],
  ]);
});

test("a sheet that is none is refused with what is wrong", async () => {
  await assert.rejects(read("path,class\na.png,cat\n"), /columns image and label/);
  await assert.rejects(read("image,label\na.png,\n"), /row 2/);
  await assert.rejects(read('image,label\n"a.png,cat\n'), /quote is not closed/);
});
