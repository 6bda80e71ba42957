package litestream

import (
	"bytes"
	"encoding/hex"
	"math"
	"strings"
	"testing"
)

func TestStreamRecordHeader_Layout(t *testing.T) {
	hdr := StreamRecordHeader{
		Type: StreamRecordTypeWALSegment, Flags: 0x1020304, Generation: "fedcba9876543210",
		Index: 0x11223344, Offset: 0x2122232425262728, Size: 0x3132333435363738,
	}
	want, err := hex.DecodeString("00000002" + "01020304" + "fedcba9876543210" + "0000000011223344" + "2122232425262728" + "3132333435363738")
	if err != nil {
		t.Fatal(err)
	}
	b, err := hdr.MarshalBinary()
	if err != nil || !bytes.Equal(b, want) {
		t.Fatalf("marshal: %x, %v; want %x", b, err, want)
	}
	var got StreamRecordHeader
	if err := got.UnmarshalBinary(b); err != nil || got != hdr {
		t.Fatalf("unmarshal: %+v, %v", got, err)
	}
	if got, want := hdr.Pos(), (Pos{"fedcba9876543210", 0x11223344, 0x2122232425262728}); got != want {
		t.Fatalf("position %v, want %v", got, want)
	}
}

func TestStreamRecordHeader_RoundTripAtTheLimits(t *testing.T) {
	for _, hdr := range []StreamRecordHeader{
		{Type: StreamRecordTypeSnapshot, Generation: "0000000000000000"},
		{Type: StreamRecordTypeSnapshot, Generation: "ffffffffffffffff", Index: math.MaxInt, Size: math.MaxInt64},
		{Type: StreamRecordTypeWALSegment, Flags: math.MaxInt32, Generation: testGeneration, Offset: math.MaxInt64},
	} {
		b, err := hdr.MarshalBinary()
		if err != nil || len(b) != StreamRecordHeaderSize {
			t.Fatalf("marshal %+v: %d bytes, %v", hdr, len(b), err)
		}
		var got StreamRecordHeader
		if err := got.UnmarshalBinary(b); err != nil || got != hdr {
			t.Fatalf("unmarshal: %+v, %v; want %+v", got, err, hdr)
		}
	}
}

func TestStreamRecordHeader_MarshalRefusesBadFields(t *testing.T) {
	good := StreamRecordHeader{Type: StreamRecordTypeWALSegment, Generation: testGeneration, Index: 1, Offset: 2, Size: 3}
	for name, edit := range map[string]func(*StreamRecordHeader){
		"type 0":          func(h *StreamRecordHeader) { h.Type = 0 },
		"type 3":          func(h *StreamRecordHeader) { h.Type = 3 },
		"type -1":         func(h *StreamRecordHeader) { h.Type = -1 },
		"flags -1":        func(h *StreamRecordHeader) { h.Flags = -1 },
		"generation \"\"": func(h *StreamRecordHeader) { h.Generation = "" },
		"generation \"x":  func(h *StreamRecordHeader) { h.Generation = "x123456789abcdef" },
		"generation \"A":  func(h *StreamRecordHeader) { h.Generation = "ABCDEFABCDEFABCD" },
		"index -1":        func(h *StreamRecordHeader) { h.Index = -1 },
		"offset -1":       func(h *StreamRecordHeader) { h.Offset = -1 },
		"size -1":         func(h *StreamRecordHeader) { h.Size = -1 },
	} {
		hdr := good
		edit(&hdr)
		if b, err := hdr.MarshalBinary(); err == nil || b != nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %x, %v", name, b, err)
		}
	}
	if math.MaxInt > math.MaxUint32 {
		hdr := good
		hdr.Flags = math.MaxInt
		if _, err := hdr.MarshalBinary(); err == nil {
			t.Error("flags above 32 bits: no error")
		}
	}
}

// PITFALLS row 40
func TestStreamRecordHeader_UnmarshalRefusesBadBytes(t *testing.T) {
	hdr := StreamRecordHeader{Type: StreamRecordTypeWALSegment, Generation: testGeneration, Index: 1, Offset: 2, Size: 3}
	good, err := hdr.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	set := func(at int, v byte) []byte {
		b := bytes.Clone(good)
		b[at] = v
		return b
	}
	for name, b := range map[string][]byte{
		"0 bytes":  nil,
		"39 bytes": good[:39],
		"41 bytes": append(bytes.Clone(good), 0),
		"type 0":   set(3, 0),
		"type 3":   set(3, 3),
		"type":     set(0, 0xff),
		"index":    set(16, 0x80),
		"offset":   set(24, 0x80),
		"size":     set(32, 0xff),
	} {
		got := StreamRecordHeader{Type: 42}
		if err := got.UnmarshalBinary(b); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		} else if got != (StreamRecordHeader{Type: 42}) {
			t.Errorf("%s: the header was changed to %+v", name, got)
		}
	}
	if math.MaxInt == math.MaxInt32 {
		for name, b := range map[string][]byte{"index": set(19, 1), "flags": set(4, 0x80)} {
			var got StreamRecordHeader
			if err := got.UnmarshalBinary(b); err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("%s above 32 bits: %+v, %v", name, got, err)
			}
		}
	}
}
