package litestream

import (
	"math"
	"strings"
	"testing"
)

const testGeneration = "0123456789abcdef"

func TestPos_StringAndParse(t *testing.T) {
	for _, tt := range []struct {
		pos Pos
		s   string
	}{
		{Pos{}, ""},
		{Pos{Generation: testGeneration}, testGeneration + "/0000000000000000:0000000000000000"},
		{Pos{Generation: testGeneration, Index: 1, Offset: 4152}, testGeneration + "/0000000000000001:0000000000001038"},
		{Pos{Generation: testGeneration, Index: MaxIndex, Offset: math.MaxInt64}, testGeneration + "/000000007fffffff:7fffffffffffffff"},
	} {
		if got := tt.pos.String(); got != tt.s {
			t.Errorf("%#v is %q, want %q", tt.pos, got, tt.s)
		}
		if got, err := ParsePos(tt.s); err != nil || got != tt.pos {
			t.Errorf("parse %q: %#v, %v", tt.s, got, err)
		}
	}
}

func TestParsePos_RefusesOtherForms(t *testing.T) {
	const index, offset = "0000000000000001", "0000000000001038"
	for _, s := range []string{
		" ",
		"/:",
		testGeneration,
		testGeneration + "/" + index,
		testGeneration + ":" + index + "/" + offset,
		testGeneration + "/" + index + ":",
		testGeneration + "/:" + offset,
		"/" + index + ":" + offset,
		testGeneration[1:] + "/" + index + ":" + offset,
		strings.ToUpper(testGeneration) + "/" + index + ":" + offset,
		testGeneration + "/" + index[1:] + ":" + offset,
		testGeneration + "/" + index + ":" + offset + "0",
		testGeneration + "/" + index + ":" + offset + "\n",
		testGeneration + "/8000000000000000:" + offset,
		testGeneration + "/" + index + ":8000000000000000",
		testGeneration + "/+000000000000001:" + offset,
		testGeneration + "/" + index + ":" + offset + "/x",
	} {
		if p, err := ParsePos(s); err == nil {
			t.Errorf("parse %q: %#v", s, p)
		} else if p != (Pos{}) || !strings.HasPrefix(err.Error(), "parse position ") {
			t.Errorf("parse %q: %#v, %v", s, p, err)
		}
	}
}

func TestPos_IsZero(t *testing.T) {
	if !(Pos{}).IsZero() {
		t.Error("the zero value is not zero")
	}
	for _, p := range []Pos{{Generation: testGeneration}, {Index: 1}, {Offset: 1}} {
		if p.IsZero() {
			t.Errorf("%#v is zero", p)
		}
	}
}

func TestPos_Truncate(t *testing.T) {
	p := Pos{Generation: testGeneration, Index: 3, Offset: 99}
	if got, want := p.Truncate(), (Pos{Generation: testGeneration, Index: 3}); got != want {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestComparePos_OrdersByIndexThenOffset(t *testing.T) {
	at := func(index int, offset int64) Pos { return Pos{testGeneration, index, offset} }
	ascending := []Pos{at(0, 0), at(0, 1), at(0, math.MaxInt64), at(1, 0), at(2, 5), at(math.MaxInt, 0), at(math.MaxInt, math.MaxInt64)}
	for i, a := range ascending {
		for j, b := range ascending {
			want := 0
			if i < j {
				want = -1
			} else if i > j {
				want = 1
			}
			if got, err := ComparePos(a, b); err != nil || got != want {
				t.Errorf("compare %v with %v: %d, %v; want %d", a, b, got, err, want)
			}
		}
	}
	other := Pos{Generation: "fedcba9876543210"}
	if _, err := ComparePos(at(0, 0), other); err == nil {
		t.Error("two generations compare without error")
	}
}
