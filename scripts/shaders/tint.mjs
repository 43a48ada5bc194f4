// node tint.mjs WEBGPU FOLDER: has Tint, the compiler of Chromium and its relatives, take every pipeline in a folder that
// the example dump_pipelines wrote. WEBGPU is the npm package `webgpu`, which holds Dawn.
//
// Each line that it prints is `ok NAME`, or `rejected NAME: ` with the error.

import fs from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

const [library, folder] = process.argv.slice(2);
const { create, globals } = await import(pathToFileURL(path.resolve(library, 'index.js')));
Object.assign(globalThis, globals);

// Dawn's null backend compiles nothing further, and has the features and limits of any device.
// Held for as long as the device is used: nothing else keeps it from being collected.
const gpu = create(['backend=null']);
const adapter = await gpu.requestAdapter();
if (!adapter) {
    console.error('error: Dawn has no null adapter');
    process.exit(1);
}
// Only what every browser has, and subgroups.
const device = await adapter.requestDevice({ requiredFeatures: ['subgroups'] });

function report(name, error) {
    console.log(error ? `rejected ${name}: ${error.trim().split('\n')[0]}` : `ok ${name}`);
}

for (const { name, entry, constants } of JSON.parse(fs.readFileSync(path.join(folder, 'pipelines.json')))) {
    const code = fs.readFileSync(path.join(folder, `${name}.wgsl`), 'utf8');
    device.pushErrorScope('validation');
    const module = device.createShaderModule({ code });
    const invalid = await device.popErrorScope();
    if (invalid) {
        report(name, invalid.message);
        continue;
    }
    const { messages } = await module.getCompilationInfo();
    const warning = messages.find((message) => message.type === 'warning');
    if (warning) {
        report(name, `warning in line ${warning.lineNum}: ${warning.message}`);
        continue;
    }
    device.pushErrorScope('validation');
    device.pushErrorScope('internal');
    device.createComputePipeline({ layout: 'auto', compute: { module, entryPoint: entry, constants } });
    const internal = await device.popErrorScope();
    const unfit = await device.popErrorScope();
    report(name, (unfit ?? internal)?.message);
}
void gpu;
process.exit(0);
