/** What gRPC's own words become needs no service. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { Metadata, status } from "@grpc/grpc-js";

import { InvalidRequest, Overloaded, Unavailable } from "../src/index.js";
import { errorOf, isTransient } from "../src/status.js";

function failure(code: status, details: string): Error {
  return Object.assign(new Error(details), { code, details, metadata: new Metadata() });
}

test("what TLS refuses is not waited for", () => {
  for (const why of [
    "No connection established. Last error: Error: unable to verify the first certificate.",
    "Last error: Error: 806C:error:0A00010B:SSL routines:ssl3_get_record:wrong version number:../d",
    "Hostname/IP does not match certificate's altnames: Host: elsewhere.",
  ]) {
    const error = errorOf(failure(status.UNAVAILABLE, why));
    assert(error instanceof Unavailable);
    assert.equal(error.reason, "TLS_REFUSED");
    assert(!isTransient(error));
  }
  assert(isTransient(errorOf(failure(status.UNAVAILABLE, "connect ECONNREFUSED"))));
});

test("a message over the limit is no full queue", () => {
  for (const text of [
    "Received message larger than max (67 vs. 64)", // the service's
    "Attempted to send message with a size larger than 64", // grpc-js's own
  ]) {
    const error = errorOf(failure(status.RESOURCE_EXHAUSTED, text));
    assert(error instanceof InvalidRequest);
    assert.equal(error.reason, "MESSAGE_TOO_LARGE");
  }
  assert(errorOf(failure(status.RESOURCE_EXHAUSTED, "no room")) instanceof Overloaded);
});
