export { Access, type TokenOptions } from "./access.js";
export { Client, DEFAULT_TARGET } from "./client.js";
export type { AdaptOptions, PredictOptions, RegisterOptions } from "./client.js";
export type { Settings, TLS } from "./connection.js";
export * from "./errors.js";
export type { VersionFiles } from "./files.js";
export { examplesFromFolder, labelsOfFolder } from "./folders.js";
export { Job, ended } from "./job.js";
export { Rollouts, type RolloutOptions } from "./rollouts.js";
export { examplesFromSheet, labelsOfSheet } from "./sheets.js";
export type { Example, UploadResult } from "./upload.js";
export { AccessRole } from "./stubs/acclimate/v1/access.js";
export type { AuditEntry, Token } from "./stubs/acclimate/v1/access.js";
export {
  AdaptationJob_Kind as JobKind,
  AdaptationJob_Phase as Phase,
  AdaptationJob_State as JobState,
  JobEvent_Kind as EventKind,
  Role,
  UploadBatchResponse_Acknowledgement_Outcome as Outcome,
} from "./stubs/acclimate/v1/adaptation.js";
export type {
  Domain,
  JobEvent,
  LabeledBatch,
  UploadBatchResponse_Acknowledgement as Acknowledgement,
} from "./stubs/acclimate/v1/adaptation.js";
export type {
  Drift,
  PredictResponse,
  PredictStreamResponse,
  Prediction,
} from "./stubs/acclimate/v1/inference.js";
export { Decoding, WeightsSource_Kind as WeightsKind } from "./stubs/acclimate/v1/registry.js";
export type { Alias, Model, ModelVersion } from "./stubs/acclimate/v1/registry.js";
export { Rollout_Mode as RolloutMode, Rollout_State as RolloutState } from "./stubs/acclimate/v1/rollout.js";
export type { Rollout, RolloutCounts, RolloutLimits } from "./stubs/acclimate/v1/rollout.js";
