/** Labelled images from a CSV file: a row an image, with its path, its label and perhaps tags. */

import { readFile } from "node:fs/promises";
import { dirname, join } from "node:path";

import type { Example } from "./upload.js";

interface Row {
  image: string;
  label: string;
  tags: readonly string[];
}

/** The labels in a CSV file with the columns `image` and `label`, sorted. */
export async function labelsOfSheet(sheet: string): Promise<string[]> {
  return [...new Set((await rowsOf(sheet)).map(({ label }) => label))].sort();
}

/**
 * The images that a CSV file names, in its order; each is read when it is due. Paths are
 * relative to the file's folder; tags stand between blanks.
 */
export async function* examplesFromSheet(
  sheet: string,
  options: { limitPerClass?: number; tags?: readonly string[] } = {},
): AsyncGenerator<Example> {
  const taken = new Map<string, number>();
  for (const { image, label, tags } of await rowsOf(sheet)) {
    const before = taken.get(label) ?? 0;
    if (before >= (options.limitPerClass ?? Infinity)) continue;
    taken.set(label, before + 1);
    yield {
      image: await readFile(join(dirname(sheet), image)),
      label,
      id: image,
      tags: [...new Set([...(options.tags ?? []), ...tags])],
    };
  }
}

async function rowsOf(sheet: string): Promise<Row[]> {
  const [head, ...records] = recordsOf((await readFile(sheet, "utf8")).replace(/^\uFEFF/, ""));
  const [image, label, tags] = ["image", "label", "tags"].map((name) => head?.indexOf(name) ?? -1);
  if (image === undefined || image < 0 || label === undefined || label < 0) {
    throw new Error(`${sheet} has no columns image and label; its first line is to name them`);
  }
  return records.map((record, index) => {
    const row = {
      image: record[image] ?? "",
      label: (record[label] ?? "").trim(),
      tags: (record[tags ?? -1] ?? "").split(/\s+/).filter(Boolean),
    };
    if (row.image && row.label) return row;
    throw new Error(`${sheet}, row ${index + 2}: an image and its label are needed`);
  });
}

/** The records of a CSV text (RFC 4180): commas and line breaks within quotes belong to a cell. */
function recordsOf(text: string): string[][] {
  const records: string[][] = [];
  let record: string[] = [];
  const cell = /(?:"((?:[^"]|"")*)"|([^",\r\n]*))(,|\r?\n|$)/gy;
  while (cell.lastIndex < text.length || record.length) {
    const at = cell.lastIndex;
    const found = cell.exec(text);
    if (!found) throw new Error(`a quote is not closed, or stands within a cell, at ${at}`);
    record.push(found[1]?.replaceAll('""', '"') ?? found[2] ?? "");
    if (found[3] === ",") continue;
    if (record.length > 1 || record[0]) records.push(record); // an empty line is none
    record = [];
  }
  return records;
}
