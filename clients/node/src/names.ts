/**
 * Short forms of resource names: `digits` for `models/digits`, `digits/3` for a version,
 * `digits@canary` for an alias. Full names pass through; the service judges their form.
 */

export const modelName = (text: string): string => prefixed("models/", text);
export const domainName = (text: string): string => prefixed("domains/", text);
export const jobName = (text: string): string => prefixed("jobs/", text);

export const aliasName = (model: string, alias: string): string =>
  `${modelName(model)}/aliases/${alias}`;

/** `digits/3`; with a model, `3` alone is enough. */
export function versionName(text: string, model = ""): string {
  if (text.startsWith("models/")) return text;
  const slash = text.indexOf("/");
  if (slash >= 0) return `${modelName(text.slice(0, slash))}/versions/${text.slice(slash + 1)}`;
  return `${modelName(model)}/versions/${text}`;
}

/** `digits/20261125-101500-1a2b3c`, of a rollout of `digits`. */
export function rolloutName(text: string): string {
  if (text.startsWith("models/")) return text;
  const slash = text.indexOf("/");
  return `${modelName(text.slice(0, Math.max(slash, 0)))}/rollouts/${text.slice(slash + 1)}`;
}

/** What answers: `digits` (its production), `digits@canary` or `digits/3`. */
export function servedName(text: string): string {
  if (text.startsWith("models/")) return text;
  const at = text.indexOf("@");
  if (at >= 0) return aliasName(text.slice(0, at), text.slice(at + 1));
  return text.includes("/") ? versionName(text) : modelName(text);
}

/** What to adapt from: a version (`3`) or an alias (`canary`); empty stays empty. */
export function baseName(text: string, model: string): string {
  if (!text || text.startsWith("models/")) return text;
  return /^\d+$/.test(text) ? versionName(text, model) : aliasName(model, text);
}

function prefixed(prefix: string, text: string): string {
  return text.startsWith(prefix) ? text : prefix + text;
}
