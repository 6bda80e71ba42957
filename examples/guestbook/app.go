package main

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"html/template"
	"log"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"example.com/litestream"
)

const (
	maxName    = 80       // characters
	maxMessage = 1000     // characters
	maxBody    = 16 << 10 // bytes of a form: both at their longest, percent-encoded
	pageSize   = 100      // entries on a page
	anonymous  = "Anonymous"
)

//go:embed page.html
var pageHTML string

// app holds what the handlers share.
type app struct {
	store *store
	stats func() litestream.DBStats
	page  *template.Template
}

// newHandler returns the guestbook's pages. It refuses forms that another site
// sent.
func newHandler(st *store, stats func() litestream.DBStats) (http.Handler, error) {
	page, err := template.New("page").Parse(pageHTML)
	if err != nil {
		return nil, err
	}
	a := &app{store: st, stats: stats, page: page}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", a.list)
	mux.HandleFunc("POST /{$}", a.post)
	return secureHeaders(http.NewCrossOriginProtection().Handler(mux)), nil
}

func secureHeaders(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; "+
			"form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		next.ServeHTTP(w, r)
	})
}

// pageData is what page.html shows.
type pageData struct {
	Entries    []entry
	Before     int64 // the entries are older than this ID; 0 on the first page
	Older      int64 // the next page's Before, 0 if this is the last
	Status     status
	Form       form
	MaxName    int
	MaxMessage int
}

// form is what the visitor typed, and what is wrong with it.
type form struct {
	Name, Message, Error string
}

func (a *app) list(w http.ResponseWriter, r *http.Request) {
	var before int64
	if v := r.FormValue("before"); v != "" {
		var err error
		if before, err = strconv.ParseInt(v, 10, 64); err != nil || before < 1 {
			http.Error(w, "before: want the number of an entry", http.StatusBadRequest)
			return
		}
	}
	a.render(w, r, http.StatusOK, before, form{})
}

func (a *app) post(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	if err := r.ParseForm(); err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			http.Error(w, "The form is too large.", http.StatusRequestEntityTooLarge)
		} else {
			http.Error(w, "The form cannot be read.", http.StatusBadRequest)
		}
		return
	}
	f := checkForm(r.PostFormValue("name"), r.PostFormValue("message"))
	if f.Error != "" {
		a.render(w, r, http.StatusUnprocessableEntity, 0, f)
		return
	}
	if err := a.store.add(r.Context(), f.Name, f.Message, time.Now()); err != nil {
		fail(w, r, err)
		return
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

// checkForm tidies what a visitor typed and says what is wrong with it.
func checkForm(name, message string) form {
	f := form{
		Name:    strings.Join(strings.Fields(name), " "),
		Message: strings.TrimSpace(strings.ReplaceAll(message, "\r\n", "\n")),
	}
	switch {
	case !utf8.ValidString(name) || !utf8.ValidString(message) || strings.ContainsRune(name+message, 0):
		return form{Error: "Please use plain text."}
	case f.Message == "":
		f.Error = "Please write a message."
	case utf8.RuneCountInString(f.Name) > maxName:
		f.Error = fmt.Sprintf("Please use a name of at most %d characters.", maxName)
	case utf8.RuneCountInString(f.Message) > maxMessage:
		f.Error = fmt.Sprintf("Please use at most %d characters.", maxMessage)
	case f.Name == "":
		f.Name = anonymous
	}
	return f
}

func (a *app) render(w http.ResponseWriter, r *http.Request, code int, before int64, f form) {
	entries, more, err := a.store.before(r.Context(), before, pageSize)
	if err != nil {
		fail(w, r, err)
		return
	}
	data := pageData{
		Entries: entries, Before: before, Status: newStatus(a.stats()), Form: f,
		MaxName: maxName, MaxMessage: maxMessage,
	}
	if more {
		data.Older = entries[len(entries)-1].ID
	}
	var buf bytes.Buffer // so that an error does not follow half a page
	if err := a.page.Execute(&buf, data); err != nil {
		fail(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(code)
	w.Write(buf.Bytes()) // an error means that the visitor has left
}

// fail logs err and tells the visitor no more than that there was one.
func fail(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		return // the visitor has left, and that is the error
	}
	log.Printf("guestbook: %s %s: %v", r.Method, r.URL.Path, err)
	http.Error(w, "Something went wrong. Please try again.", http.StatusInternalServerError)
}

// status is the replication's state in words.
type status struct {
	Position string
	Lag      string
	Error    string // empty while all is well
}

func newStatus(stats litestream.DBStats) status {
	s := status{Position: stats.Pos.String(), Lag: "caught up"}
	if s.Position == "" {
		s.Position = "not yet known"
	}
	err := stats.LastError
	var lag time.Duration
	for _, r := range stats.Replicas {
		lag = max(lag, r.Lag)
		if r.LastError != nil {
			err = errors.Join(err, fmt.Errorf("replica %q: %w", r.Name, r.LastError))
		}
	}
	if lag > 0 {
		s.Lag = lag.Round(time.Millisecond).String() + " behind"
	}
	if err != nil {
		s.Error = err.Error()
	}
	return s
}
