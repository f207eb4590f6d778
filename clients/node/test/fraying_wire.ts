/** A TCP proxy that cuts every connection through it after so many bytes, so many times. */

import { connect, createServer, type AddressInfo, type Server } from "node:net";

export class FrayingWire {
  cuts = 0;
  private server: Server | undefined;

  constructor(
    private readonly target: string,
    private readonly bytes: number,
    private readonly most: number,
  ) {}

  /** Listen on a free port of the loopback interface; the address to call instead. */
  async open(): Promise<string> {
    const [host, port] = this.target.split(":");
    const server = createServer((near) => {
      const far = connect(Number(port), host);
      let passed = 0;
      const count = (chunk: Buffer): void => {
        passed += chunk.length;
        if (passed < this.bytes || this.cuts >= this.most) return;
        this.cuts += 1;
        near.destroy();
        far.destroy();
      };
      near.on("data", count).on("error", () => far.destroy());
      far.on("data", count).on("error", () => near.destroy());
      near.pipe(far).pipe(near);
    });
    this.server = server;
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    return `127.0.0.1:${(server.address() as AddressInfo).port}`;
  }

  close(): void {
    this.server?.close();
  }
}
