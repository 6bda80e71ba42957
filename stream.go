package litestream

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"math"
)

// Types of the records of a stream.
const (
	StreamRecordTypeSnapshot   = 1
	StreamRecordTypeWALSegment = 2
)

// StreamRecordFlagPartial, bit 0 of StreamRecordHeader.Flags, says that the
// state after this record is not consistent by itself, or may be older than
// what the follower had already applied: the follower applies it in one
// transaction with the records behind it, up to and including the first
// without the flag. A snapshot has it unless nothing follows that completes it,
// and so has every segment before the upstream's position at the time of the
// call of Stream, or of the snapshot. So the first transaction after a connect
// covers whatever the follower applied before a crash without noting how far it
// was.
const StreamRecordFlagPartial = 1 << 0

// StreamRecordHeaderSize is the size in bytes of an encoded StreamRecordHeader.
const StreamRecordHeaderSize = 0 + 4 + 4 + 8 + 8 + 8 + 8

// StreamClient connects a follower to its upstream: a DB with one applies the
// changes of another database. Implementations must be safe for concurrent
// use. Package streamhttp has one.
type StreamClient interface {
	// Stream returns a reader of the upstream's changes from pos on. When the
	// upstream cannot continue from there, above all from the zero position,
	// the first record is a snapshot. The caller closes the reader; its reads
	// return promptly once ctx ends.
	Stream(ctx context.Context, pos Pos) (StreamReader, error)
}

// StreamReader reads the records of a stream: at most one snapshot, which
// comes first, then the WAL segments that follow it, in order and without gap.
// A segment of size 0 has no body and is a heartbeat: it says that the upstream
// is alive and has captured everything before the record's Pos, which is not
// before the end of the records sent so far. It never has StreamRecordFlagPartial.
//
// Read and Next are for one goroutine. Close may be called from any, and makes
// a Next or Read that waits return an error promptly; so does the end of the
// context that Stream was called with.
type StreamReader interface {
	// Read reads the body of the current record, Size bytes of LZ4-compressed
	// data, and returns io.EOF at its end. Close ends the stream.
	io.ReadCloser

	// PageSize returns the page size of the upstream database in bytes.
	PageSize() int

	// Next skips what is left of the current body, waits for the next record
	// and returns its header. It returns io.EOF when the upstream ended the
	// stream between two records, as it does when it begins another generation,
	// and io.ErrUnexpectedEOF when the stream broke inside one. An error is
	// final.
	Next() (*StreamRecordHeader, error)
}

// StreamRecordHeader precedes the body of each record of a stream.
//
//	0        4        8                 16       24       32       40
//	+--------+--------+--------+--------+--------+--------+--------+
//	| type   | flags  | generation      | index  | offset | size   |
//	+--------+--------+--------+--------+--------+--------+--------+
//
// All fields are big-endian. The generation is the number that its hex digits
// write. UnmarshalBinary refuses what MarshalBinary could not have written.
type StreamRecordHeader struct {
	Type       int    // StreamRecordTypeSnapshot or StreamRecordTypeWALSegment
	Flags      int    // 32 bits: StreamRecordFlagPartial; others are 0, and ignored by readers
	Generation string // 16 hex digits
	Index      int    // of the WAL
	Offset     int64  // of a segment: where its first byte stands in the WAL
	Size       int64  // of the body in bytes; 0 for a heartbeat
}

// Pos returns the position at which the record begins.
func (hdr *StreamRecordHeader) Pos() Pos {
	return Pos{Generation: hdr.Generation, Index: hdr.Index, Offset: hdr.Offset}
}

// MarshalBinary returns the 40 bytes of the header, or an error if a field is
// out of its range.
func (hdr *StreamRecordHeader) MarshalBinary() ([]byte, error) {
	if err := hdr.validate(); err != nil {
		return nil, fmt.Errorf("marshal stream record: %w", err)
	}
	b := make([]byte, 0, StreamRecordHeaderSize)
	b = binary.BigEndian.AppendUint32(b, uint32(hdr.Type))
	b = binary.BigEndian.AppendUint32(b, uint32(hdr.Flags))
	b, err := hex.AppendDecode(b, []byte(hdr.Generation))
	if err != nil {
		return nil, fmt.Errorf("marshal stream record: generation %q: %w", hdr.Generation, err)
	}
	b = binary.BigEndian.AppendUint64(b, uint64(hdr.Index))
	b = binary.BigEndian.AppendUint64(b, uint64(hdr.Offset))
	b = binary.BigEndian.AppendUint64(b, uint64(hdr.Size))
	return b, nil
}

// UnmarshalBinary sets hdr from exactly 40 bytes. After an error hdr is as it
// was.
func (hdr *StreamRecordHeader) UnmarshalBinary(data []byte) error {
	if len(data) != StreamRecordHeaderSize {
		return fmt.Errorf("unmarshal stream record: %d bytes, want %d", len(data), StreamRecordHeaderSize)
	}
	typ, flags := binary.BigEndian.Uint32(data), binary.BigEndian.Uint32(data[4:])
	index, offset, size := binary.BigEndian.Uint64(data[16:]), binary.BigEndian.Uint64(data[24:]), binary.BigEndian.Uint64(data[32:])
	for _, field := range []struct {
		name     string
		v, limit uint64
	}{
		{"type", uint64(typ), math.MaxInt},
		{"flags", uint64(flags), math.MaxInt},
		{"index", index, math.MaxInt},
		{"offset", offset, math.MaxInt64},
		{"size", size, math.MaxInt64},
	} {
		if field.v > field.limit {
			return fmt.Errorf("unmarshal stream record: %s %d is above %d", field.name, field.v, field.limit)
		}
	}
	h := StreamRecordHeader{
		Type:       int(typ),
		Flags:      int(flags),
		Generation: hex.EncodeToString(data[8:16]),
		Index:      int(index),
		Offset:     int64(offset),
		Size:       int64(size),
	}
	if err := h.validate(); err != nil {
		return fmt.Errorf("unmarshal stream record: %w", err)
	}
	*hdr = h
	return nil
}

func (hdr *StreamRecordHeader) validate() error {
	switch {
	case hdr.Type != StreamRecordTypeSnapshot && hdr.Type != StreamRecordTypeWALSegment:
		return fmt.Errorf("type %d is unknown", hdr.Type)
	case hdr.Flags < 0 || int64(hdr.Flags) > math.MaxUint32:
		return fmt.Errorf("flags %d are not 32 bits", hdr.Flags)
	case !IsGenerationName(hdr.Generation):
		return fmt.Errorf("generation %q: want %d lowercase hex digits", hdr.Generation, GenerationNameLen)
	case hdr.Index < 0:
		return fmt.Errorf("index %d is negative", hdr.Index)
	case hdr.Offset < 0:
		return fmt.Errorf("offset %d is negative", hdr.Offset)
	case hdr.Size < 0:
		return fmt.Errorf("size %d is negative", hdr.Size)
	}
	return nil
}
