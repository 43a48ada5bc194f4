// Runs the check by Deno: in Deno itself, or in a browser that it starts and serves.
//
//     deno run --allow-all tests/web/run.mjs PKG INPUTS RESULTS [BROWSER ARGUMENT…]
//
// PKG is what wasm-bindgen wrote, INPUTS holds weights.safetensors and batch.safetensors, RESULTS gets what came out.
import { check } from "./check.mjs";

const LIMIT_S = 900;

const [pkg, inputs, results, ...browser] = Deno.args;
if (!results) {
    console.error("usage: run.mjs PKG INPUTS RESULTS [BROWSER ARGUMENT…]");
    Deno.exit(2);
}
const own = import.meta.dirname;
await Deno.remove(results, { recursive: true }).catch(() => {});
await Deno.mkdir(results, { recursive: true });

// Messages are added to what is there; everything else comes once.
const save = (name, bytes) => Deno.writeFile(`${results}/${name}`, bytes, { append: name.endsWith(".txt") });

async function inDeno() {
    for (const level of ["error", "warn"]) {
        console[level] = (...values) => save("console.txt", new TextEncoder().encode(`${level}: ${values.join(" ")}\n`));
    }
    const thawline = await import(`file://${await Deno.realPath(pkg)}/thawline_web_test.js`);
    await thawline.default({ module_or_path: await Deno.readFile(`${pkg}/thawline_web_test_bg.wasm`) });
    await check(thawline, (name) => Deno.readFile(`${inputs}/${name}`), save);
}

async function inBrowser() {
    const { promise: done, resolve: finish } = Promise.withResolvers();
    const types = { html: "text/html", js: "text/javascript", mjs: "text/javascript", wasm: "application/wasm" };
    const folders = { pkg, inputs };
    const answer = async (request) => {
        const path = decodeURIComponent(new URL(request.url).pathname).slice(1) || "index.html";
        const name = path.split("/").pop();
        if (request.method === "POST") {
            await save(name, new Uint8Array(await request.arrayBuffer()));
            if (name === "done") finish();
            return new Response("");
        }
        const folder = path.includes("/") ? folders[path.split("/")[0]] : own;
        try {
            const type = types[name.split(".").pop()] ?? "application/octet-stream";
            return new Response(await Deno.readFile(`${folder}/${name}`), { headers: { "content-type": type } });
        } catch {
            return new Response("", { status: 404 });
        }
    };
    const server = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen() {} }, answer);
    const [command, ...args] = [...browser, `http://127.0.0.1:${server.addr.port}/`];
    const child = new Deno.Command(command, { args, stdin: "null", stdout: "null", stderr: "null" }).spawn();
    const status = child.status;
    await Promise.race([done, status]);
    try {
        child.kill("SIGTERM");
    } catch {
        // It has ended by itself.
    }
    await status;
    await server.shutdown();
}

const timer = setTimeout(() => {
    console.error(`error: no result after ${LIMIT_S} s`);
    Deno.exit(1);
}, LIMIT_S * 1000);
await (browser.length > 0 ? inBrowser() : inDeno());
clearTimeout(timer);

const there = [...Deno.readDirSync(results)].map((entry) => entry.name);
for (const name of ["error.txt", "console.txt"]) {
    if (there.includes(name)) Deno.stderr.writeSync(await Deno.readFile(`${results}/${name}`));
}
Deno.exit(there.includes("done") && !there.includes("error.txt") ? 0 : 1);
