/** Labelled images from a folder whose subfolders are the labels. */

import { readFile, readdir } from "node:fs/promises";
import { join, posix, sep } from "node:path";

import type { Example } from "./upload.js";

const SUFFIXES = /\.(jpe?g|jpe|jfif|png|webp)$/i;
// Hidden, or what an archiver of another system left beside the images.
const NOT_SHOWN = /(^|[/\\])(\.|__MACOSX([/\\]|$))/;
// What data sets call their parts: subfolders of these names hold labels, and are none.
const SPLITS = /^(train(ing)?|val(id(ation)?)?|test(ing)?)$/i;

/** The names of the subfolders, sorted: the labels of the images in them. */
export async function labelsOfFolder(folder: string): Promise<string[]> {
  const entries = await readdir(folder, { withFileTypes: true });
  const folders = entries.filter((e) => e.isDirectory() && !NOT_SHOWN.test(e.name));
  const labels = folders.map((entry) => entry.name).sort();
  if (!labels.length) throw new Error(`${folder} has no subfolders; expected one for each label`);
  if (labels.length > 1 && labels.every((label) => SPLITS.test(label))) {
    throw new Error(
      `${folder} holds ${labels.join(", ")}, which are parts of a data set, not labels; upload ` +
        "each by itself: what is to be learned from with the role train, what judges with holdout",
    );
  }
  return labels;
}

/** The images in the subfolders, sorted by path; each is read when it is due. */
export async function* examplesFromFolder(
  folder: string,
  options: { limitPerClass?: number; tags?: readonly string[] } = {},
): AsyncGenerator<Example> {
  for (const label of await labelsOfFolder(folder)) {
    const found = await readdir(join(folder, label), { recursive: true });
    const shown = found.filter((path) => SUFFIXES.test(path) && !NOT_SHOWN.test(path)).sort();
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
