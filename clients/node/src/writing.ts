/** Writing to a call no faster than it can be sent. */

import type { ClientWritableStream } from "@grpc/grpc-js";

const OVER = ["drain", "error", "end", "close"] as const;

/** Write, and wait where the transport asks for it, so that nothing piles up here. */
export async function write<Message>(
  call: Pick<ClientWritableStream<Message>, "write" | "on" | "off">,
  message: Message,
): Promise<void> {
  if (call.write(message)) return;
  await new Promise<void>((resolve) => {
    const go = (): void => {
      for (const event of OVER) call.off(event, go);
      resolve(); // after an error, whoever reads the call throws it
    };
    for (const event of OVER) call.on(event, go);
  });
}
