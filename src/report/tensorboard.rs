//! TensorBoard's event files: framed protobuf messages (`tensorflow/core/util/event.proto`), as far as scalars need.

use crate::train::Crc32c;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// An event file that scalars are appended to.
pub struct Events {
    path: PathBuf,
    file: File,
}

impl Events {
    /// Creates the file in `folder`, with a name that sorts behind those of earlier files. It tells TensorBoard to
    /// forget what earlier files say of steps after `step`: a run that was cut off does them again.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn create(folder: &Path, step: u64) -> io::Result<Self> {
        let second = now().as_secs();
        let mut number = 0;
        let (path, file) = loop {
            let path = folder.join(format!("events.out.tfevents.{second:010}.{number:03}.thawline"));
            match OpenOptions::new().append(true).create_new(true).open(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => number += 1,
                opened => break (path, opened?),
            }
        };
        let mut events = Self { path, file };
        events.event(0, |event| bytes_field(event, 3, b"brain.Event:2"))?;
        // session_log { status: START }
        events.event(step + 1, |event| bytes_field(event, 7, &[1 << 3, 1]))?;
        Ok(events)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends the values of some scalars after `step` optimiser steps.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn scalars(&mut self, step: u64, scalars: &[(&str, f64)]) -> io::Result<()> {
        let mut summary = Vec::new();
        for &(tag, value) in scalars {
            let mut message = Vec::new();
            bytes_field(&mut message, 1, tag.as_bytes());
            message.push(2 << 3 | 5);
            message.extend((value as f32).to_le_bytes());
            bytes_field(&mut summary, 1, &message);
        }
        self.event(step, |event| bytes_field(event, 5, &summary))
    }

    fn event(&mut self, step: u64, content: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let mut event = vec![1 << 3 | 1];
        event.extend(now().as_secs_f64().to_le_bytes());
        event.push(2 << 3);
        varint(&mut event, step);
        content(&mut event);

        let length = (event.len() as u64).to_le_bytes();
        let mut record = length.to_vec();
        record.extend(masked_crc(&length).to_le_bytes());
        record.extend(&event);
        record.extend(masked_crc(&event).to_le_bytes());
        // Unbuffered and in one piece: a reader that follows the file sees whole records.
        self.file.write_all(&record)
    }
}

/// Field `number` of a protobuf message, with length and content.
fn bytes_field(message: &mut Vec<u8>, number: u8, content: &[u8]) {
    message.push(number << 3 | 2);
    varint(message, content.len() as u64);
    message.extend(content);
}

fn varint(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

fn masked_crc(bytes: &[u8]) -> u32 {
    Crc32c::new().update(bytes).finish().rotate_right(15).wrapping_add(0xa282_ead8)
}

fn now() -> std::time::Duration {
    // A clock before 1970 counts as 1970.
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
