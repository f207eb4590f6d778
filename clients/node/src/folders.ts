/** Labelled images from a folder whose subfolders are the labels. */

import { readFile, readdir } from "node:fs/promises";
import { join, posix, sep } from "node:path";

import type { Example } from "./upload.js";

const SUFFIXES = /\.(jpe?g|png|webp)$/i;

/** The names of the subfolders, sorted: the labels of the images in them. */
export async function labelsOfFolder(folder: string): Promise<string[]> {
  const entries = await readdir(folder, { withFileTypes: true });
  const labels = entries.filter((e) => e.isDirectory() && !e.name.startsWith("."));
  if (!labels.length) throw new Error(`${folder} has no subfolders; expected one for each label`);
  return labels.map((entry) => entry.name).sort();
}

/** The images in the subfolders, sorted by path; each is read when it is due. */
export async function* examplesFromFolder(
  folder: string,
  options: { limitPerClass?: number; tags?: readonly string[] } = {},
): AsyncGenerator<Example> {
  for (const label of await labelsOfFolder(folder)) {
    const found = await readdir(join(folder, label), { recursive: true });
    const shown = found.filter((path) => SUFFIXES.test(path) && !/(^|[/\\])\./.test(path)).sort();
    for (const path of shown.slice(0, options.limitPerClass)) {
      yield {
        image: await readFile(join(folder, label, path)),
        label,
        id: posix.join(label, ...path.split(sep)),
        tags: options.tags ?? [],
      };
    }
  }
}
